"""Checkpoints of training: atomic, with a digest, the last few kept, a damaged one stepped over."""

import re
from pathlib import Path
from typing import Any

import torch

from mvar import layout
from mvar.artefacts import read_artefact, write_artefact
from mvar.checkpoints.pickles import read_pickle
from mvar.errors import UserError, warn


def path_of(directory: Path | str, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(directory) / f"step_{step:08d}.pt"


def save(directory: Path | str, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `directory/step_XXXXXXXX.pt` atomically, then delete all but the newest `keep` checkpoints up to this step.

    Those of later steps go too: they are what `load_latest` could not read, and would be taken for the newest again.
    When the write fails (OSError: a full disk) the older checkpoints stay.
    """
    directory = Path(directory)
    path = path_of(directory, step)
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob(".step_*.tmp"):  # left by a killed writer
        stale.unlink(missing_ok=True)
    with write_artefact(path) as file:
        torch.save({"step": step, "state": state}, file)
    found = _newest_first(directory)
    here = found.index(path)
    for other in found[:here] + found[here + keep :]:
        other.unlink(missing_ok=True)
    return path


def load(path: Path | str) -> dict[str, Any]:
    """Read one checkpoint's state to the CPU; a missing, truncated or foreign file is a `UserError` that names it."""
    return _load(Path(path))[1]


def load_latest(directory: Path | str) -> tuple[int, dict[str, Any]] | None:
    """The step and state of the newest checkpoint that can be read; None where there is none.

    One that cannot be read is skipped with a warning: training redoes the steps since the older one, or all of them.
    """
    damaged: list[UserError] = []
    found, instead = None, "no other can be read, training starts anew"
    for path in _newest_first(Path(directory)):
        try:
            found, instead = _load(path), f"training goes on from the one before it, {path.name}"
            break
        except UserError as error:
            damaged.append(error)
    for error in damaged:
        warn(f"{error}; {instead}")
    return found


def _newest_first(directory: Path) -> list[Path]:
    return sorted(
        (p for p in directory.glob(layout.CHECKPOINT_FILES) if re.fullmatch(r"step_\d{8,}\.pt", p.name)), reverse=True
    )


def _load(path: Path) -> tuple[int, dict[str, Any]]:
    try:
        content = read_pickle(path, read_artefact(path), mapped=False)
        step, state = content["step"], content["state"]
        if type(step) is not int or path != path_of(path.parent, step) or not isinstance(state, dict):
            raise ValueError("it holds no state of its step")
        return step, state
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; allowed: one that a training has saved") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError ... for damaged files
        size = path.stat().st_size if path.is_file() else 0
        reason = str(error).removeprefix(f"checkpoint: {path} cannot be read ").strip("( ").split("\n")[0]
        reason = reason.removeprefix("truncated or damaged: ").removeprefix(f"{path}: damaged: ")[:120]
        raise UserError(
            f"{path}: not a readable checkpoint, {size} bytes (truncated or damaged: {reason}); allowed: a complete one"
        ) from None
