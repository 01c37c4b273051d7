"""Checkpoints of training: atomic, with digests, the last few kept, a damaged one stepped over.

One process writes a file, several write a folder of their shards (`training.shards`). Either is read by any number.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvar.artefacts import complain_of, write_artefact
from mvar.checkpoints.pickles import read_pickle
from mvar.errors import UserError
from mvar.files import file_digest
from mvar.training import shards
from mvar.training.kept import Kept, first_sound, keep_newest, newest_first, remove_begun, split, step_of
from mvar.training.shares import copy_share


def path_of(directory: Path | str, step: int) -> Path:
    """Where the checkpoint of a step lies that one process has written."""
    return shards.path_of(directory, step).with_suffix(".pt")


def save(directory: Path | str, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `directory/step_XXXXXXXX.pt` atomically, then delete all but the newest `keep` checkpoints up to this step.

    Those of later steps go too: they are what `load_latest` could not read, and would be taken for the newest again.
    When the write fails (OSError: a full disk) the older checkpoints stay.
    """
    directory = Path(directory)
    path = path_of(directory, step)
    directory.mkdir(parents=True, exist_ok=True)
    remove_begun(directory)
    with write_artefact(path) as file:
        torch.save({"step": step, "state": state}, file)
    keep_newest(path, keep)
    return path


class OneFile(Kept):
    """A checkpoint in one file, whose tensors are mapped: they take memory when they are read."""

    def __init__(self, path: Path, step: int, state: dict[str, Any]) -> None:
        self._state = state
        self._tensors, rest = split(state)
        super().__init__(path, step, rest)

    def sizes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (value.shape, value.dtype) for name, value in self._tensors.items()}

    def fill(self, targets: dict[str, Tensor]) -> None:
        self.check(targets)
        for name, target in targets.items():
            copy_share(target, self._tensors[name])

    def whole(self) -> dict[str, Any]:
        return self._state


def open_kept(path: Path | str, rank: int = 0, world: int = 1) -> Kept:
    """Open a checkpoint of either form, to the CPU.

    Args:
        path: its file or folder.
        rank, world: of a process that shares the work of comparing digests with others.

    Raises:
        UserError: missing, truncated, damaged or foreign; names it.
    """
    path = Path(path)
    return shards.open_shards(path, rank, world) if path.is_dir() else _open_file(path, rank)


def load(path: Path | str) -> dict[str, Any]:
    """The whole state of a checkpoint, on the CPU; raises what `open_kept` raises."""
    return open_kept(path).whole()


def load_latest(directory: Path | str) -> tuple[int, dict[str, Any]] | None:
    """The step and state of the newest checkpoint that can be read; None where there is none.

    One that cannot be read is skipped with a warning: training redoes the steps since the older one, or all of them.
    """
    found = first_sound(newest_first(Path(directory)), open_kept)
    return (found.step, found.whole()) if found else None


def _open_file(path: Path, rank: int) -> OneFile:
    try:
        if rank == 0:
            complain_of(path, file_digest(path))
        content = read_pickle(path)
        step, state = content["step"], content["state"]
        if type(step) is not int or step != step_of(path) or not isinstance(state, dict):
            raise ValueError("it holds no state of its step")
        return OneFile(path, step, state)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; allowed: one that a training has saved") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError ... for damaged files
        size = path.stat().st_size if path.is_file() else 0
        reason = str(error).removeprefix(f"checkpoint: {path} cannot be read ").strip("( ").split("\n")[0]
        reason = reason.removeprefix("truncated or damaged: ").removeprefix(f"{path}: damaged: ")[:120]
        raise UserError(
            f"{path}: not a readable checkpoint, {size} bytes (truncated or damaged: {reason}); allowed: a complete one"
        ) from None
