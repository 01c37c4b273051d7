"""Executors by name. A new one is a file with a class, and its name here; or registered from a file of the user's."""

from typing import Any

from mvar.registry import Registry
from mvar.runs.executors.contract import Executor

# A profile's `executor` is one of these names. SLURM's launcher lies above the engine.
EXECUTORS: Registry[Executor[Any]] = Registry(
    "executor",
    {
        "slurm": "mvar.cluster.executor:Slurm",
        "local": "mvar.runs.executors.local:Local",
        "inprocess": "mvar.runs.executors.inprocess:InProcess",
    },
)


def find(name: str) -> Executor[Any]:
    """The executor of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    return EXECUTORS.find(name)()
