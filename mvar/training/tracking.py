"""Logged steps in a tool that shows curves: TensorBoard, trackio, or Weights & Biases, whose API trackio's is.

One tracker a training, opened where it begins or goes on. A tracker sees what metrics.jsonl has and nothing else; it is
no part of what a run is, and one that fails in the middle is warned of and left out, for training matters more.
"""

import contextlib
import inspect
import io
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mvar import layout
from mvar.errors import UserError, warn
from mvar.files import read_json

if TYPE_CHECKING:
    from mvar.config import RuntimeConfig

TENSORBOARD = "tensorboard"
Row = Mapping[str, float]


class Tracker(Protocol):
    """Takes the rows of one training."""

    def log(self, row: Row) -> None:
        """Take a row; it holds `step`."""

    def close(self) -> None:
        """No more follow."""


def asked_for(runtime: "RuntimeConfig") -> list[str]:
    """The trackers that a run asks for; `runtime.tensorboard` is the first version's way to ask for one of them."""
    return sorted({runtime.tracking, *([TENSORBOARD] if runtime.tensorboard else [])} - {"none"})


def check_tracking(runtime: "RuntimeConfig") -> None:
    """Whether what a run asks for is installed; nothing is imported.

    Raises:
        UserError: it is not; says how to install it.
    """
    for name in asked_for(runtime):
        if _is_missing(name):
            field = f"tracking={name}" if runtime.tracking == name else f"{name}=true"
            raise UserError(f"runtime.{field} needs the package {name}; pip install {name}")


def _is_missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except (ImportError, ValueError):  # what was put among the loaded modules has no spec
        return False


def open_trackers(runtime: "RuntimeConfig", directory: Path, step: int) -> list[Tracker]:
    """The trackers of a training that begins, or goes on, after `step`, in a directory.

    Raises:
        UserError: one is not installed, or refuses.
    """
    check_tracking(runtime)
    names = asked_for(runtime)
    return [
        _TensorBoard(directory, step) if name == TENSORBOARD else _Run(name, runtime.tracking_project, directory)
        for name in names
    ]


class _TensorBoard:
    """Writes `directory/tensorboard`."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / layout.TENSORBOARD), purge_step=step + 1)

    def log(self, row: Row) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        self._writer.close()


class _Run:
    """A run of trackio or wandb, called as the directory is; a training that goes on goes on in it.

    Raises:
        UserError: the package cannot be loaded, or refuses to begin.
    """

    def __init__(self, package: str, project: str, directory: Path) -> None:
        self._package, self._is_open = package, True
        try:
            with _quiet():
                self._module: Any = import_module(package)
                values: dict[str, Any] = {"project": project, "name": directory.name, "resume": "allow"}
                if "id" in inspect.signature(self._module.init).parameters:  # wandb resumes by it, trackio by the name
                    values["id"] = directory.name
                self._module.init(**values, config=_config_of(directory))
        except Exception as error:  # of somebody else's code, of whatever type
            raise UserError(f"runtime.tracking={package}: {type(error).__name__}: {error}") from None

    def log(self, row: Row) -> None:
        values = {name: value for name, value in row.items() if name != "step"}
        if self._is_open:
            self._safely(lambda: self._module.log(values, step=int(row["step"])))

    def close(self) -> None:
        if self._is_open:
            self._safely(lambda: self._module.finish())

    def _safely(self, act: Any) -> None:
        try:
            with _quiet():
                act()
        except Exception as error:  # as above
            self._is_open = False
            told = f"{type(error).__name__}: {error}"
            warn(f"runtime.tracking={self._package}: {told}; the rest is in metrics.jsonl alone")


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """What a package prints to stdout is no answer of ours."""
    return contextlib.redirect_stdout(io.StringIO())


def _config_of(directory: Path) -> dict[str, Any]:
    """The configuration beside the training; empty where there is none."""
    try:
        return read_json(directory / layout.CONFIG)
    except (OSError, UserError):
        return {}
