"""Executors by name. A new one is a file with a class, and its name here; or `register`ed from a file of the user's."""

from importlib import import_module
from typing import Any

from mvar.errors import UserError, one_of
from mvar.runs.executors.contract import Executor

# Name -> "module:Class". By path, so that a launcher above the engine is loaded only where it is asked for.
REGISTRY: dict[str, str] = {
    "slurm": "mvar.cluster.executor:Slurm",
    "local": "mvar.runs.executors.local:Local",
    "inprocess": "mvar.runs.executors.inprocess:InProcess",
}
_own: dict[str, type[Executor[Any]]] = {}  # classes that were registered themselves


def names() -> list[str]:
    """Every name that there is."""
    return [*REGISTRY, *_own]


def register(name: str, kind: type[Executor[Any]]) -> None:
    """Give a class a name, by which a profile's `executor` finds it.

    Raises:
        UserError: another class has the name.
    """
    if name in REGISTRY or _own.get(name, kind) is not kind:
        raise UserError(f"executor: {name!r} is taken; allowed: another name than {', '.join(names())}")
    _own[name] = kind


def find(name: str) -> Executor[Any]:
    """The executor of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    if name in _own:
        return _own[name]()
    if name not in REGISTRY:
        raise one_of("executor", name, names())
    module, _, kind = REGISTRY[name].partition(":")
    return getattr(import_module(module), kind)()
