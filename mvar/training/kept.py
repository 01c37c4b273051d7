"""What a checkpoint is, however it lies on the disk: its tensors by name, and the rest; which there are, which stay."""

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mvar import layout
from mvar.errors import UserError, warn

K = TypeVar("K")
NAME = re.compile(r"step_(\d{8,})(\.pt)?")
MODULE, OPTIMIZER = "module", "optimizer"


class Kept(ABC):
    """A checkpoint that can be read.

    Args:
        path: of its file or folder.
        step: steps done.
        rest: the state without the tensors of module and optimizer.
    """

    def __init__(self, path: Path, step: int, rest: dict[str, Any]) -> None:
        self.path, self.step, self.rest = path, step, rest

    @abstractmethod
    def sizes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and type of every tensor, by its name (`split`)."""

    @abstractmethod
    def fill(self, targets: dict[str, Tensor]) -> None:
        """Copy tensors into others of their shapes, of which this process may hold a share; one at a time.

        Raises:
            KeyError: a name that it does not have.
            ValueError: another shape.
        """

    def check(self, targets: dict[str, Tensor]) -> None:
        """Raise what `fill` raises."""
        sizes = self.sizes()
        for name, target in targets.items():
            if sizes[name][0] != target.shape:
                raise ValueError(f"{name} has shape {[*sizes[name][0]]}, needed is {[*target.shape]}")

    def whole(self) -> dict[str, Any]:
        """The whole state, on the CPU."""
        targets = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in self.sizes().items()}
        self.fill(targets)
        return join(targets, self.rest)


def split(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of module and optimizer, `module.NAME` and `optimizer.NUMBER.NAME`, and the state without them."""
    module, optimizer = state[MODULE], state.get(OPTIMIZER, {"state": {}})
    tensors = {f"{MODULE}.{name}": value for name, value in module.items()}
    left: dict[int, dict[str, Any]] = {}
    for number, found in optimizer["state"].items():
        tensors |= {f"{OPTIMIZER}.{number}.{n}": value for n, value in found.items() if isinstance(value, Tensor)}
        left[number] = {name: value for name, value in found.items() if not isinstance(value, Tensor)}
    return tensors, {**state, MODULE: dict.fromkeys(module), OPTIMIZER: {**optimizer, "state": left}}


def join(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The state that was `split`, in its order; weights that are not among the tensors are None."""
    module = {name: tensors.get(f"{MODULE}.{name}") for name in rest[MODULE]}
    moments = {number: dict(found) for number, found in rest[OPTIMIZER]["state"].items()}
    for key, value in tensors.items():
        kind, number, name = (*key.split(".", 2), "")[:3]
        if kind == OPTIMIZER:
            moments[int(number)][name] = value
    return {**rest, MODULE: module, OPTIMIZER: {**rest[OPTIMIZER], "state": moments}}


# On the disk ----------------------------------------------------------------------------------------------------------


def newest_first(directory: Path) -> list[Path]:
    """The checkpoints of a folder, by step; of one step the folder goes before the file."""
    found = [path for path in directory.glob(layout.CHECKPOINTS_OF_STEPS) if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (-step_of(path), path.suffix))


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says; -1 where it says none."""
    found = NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def keep_newest(path: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to that of `path`, and those of later steps, and of its own."""
    others = [other for other in newest_first(path.parent) if other != path]
    older = [other for other in others if step_of(other) < step_of(path)]
    for other in [*others[: len(others) - len(older)], *older[keep - 1 :]]:
        remove(other)


def remove_begun(directory: Path) -> None:
    """Delete what a killed writer has left."""
    for stale in directory.glob(".step_*.tmp"):
        remove(stale)


def remove(path: Path) -> None:
    """Delete a checkpoint; of a folder nothing stays that could be taken for one."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith("."):
            gone = path.with_name(f".{path.name}.gone.tmp")
            shutil.rmtree(gone, ignore_errors=True)
            path = path.rename(gone)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def begun(path: Path) -> Path:
    """What the folder of a checkpoint is called until it is complete."""
    return path.with_name(f".{path.name}.tmp")


def first_sound(paths: Iterable[Path], attempt: Callable[[Path], K], tell: Callable[[str], None] = warn) -> K | None:
    """What the first attempt that raises no `UserError` gives; None where all do. `tell` is told of each."""
    damaged: list[UserError] = []
    found, instead = None, "no other can be read, training starts anew"
    for path in paths:
        try:
            found, instead = attempt(path), f"training goes on from the one before it, {path.name}"
            break
        except UserError as error:
            damaged.append(error)
    for error in damaged:
        tell(f"{error}; {instead}")
    return found
