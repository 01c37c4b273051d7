"""Checkpoints of training: atomic, the last few kept, a damaged one stepped over."""

import logging
import re
from pathlib import Path
from typing import Any

import torch

from mvar.errors import UserError
from mvar.files import atomic_write

log = logging.getLogger(__name__)


def path_of(directory: Path | str, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(directory) / f"step_{step:08d}.pt"


def save(directory: Path | str, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `directory/step_XXXXXXXX.pt` atomically, then delete all but the newest `keep` checkpoints.

    When the write fails (OSError: a full disk) the older checkpoints stay.
    """
    directory = Path(directory)
    path = path_of(directory, step)
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob(".step_*.tmp"):  # left by a killed writer
        stale.unlink(missing_ok=True)
    with atomic_write(path) as file:
        torch.save({"step": step, "state": state}, file)
    for old in _newest_first(directory)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path | str) -> dict[str, Any]:
    """Read one checkpoint's state to the CPU; a missing, truncated or foreign file is a `UserError` that names it."""
    return _load(Path(path))[1]


def load_latest(directory: Path | str) -> tuple[int, dict[str, Any]] | None:
    """The step and state of the newest checkpoint that can be read; None where there is none.

    One that cannot be read is skipped with a warning: training redoes the steps since the older one.
    """
    for path in _newest_first(Path(directory)):
        try:
            return _load(path)
        except UserError as error:
            log.warning("%s; falling back to the checkpoint before it", error)
    return None


def _newest_first(directory: Path) -> list[Path]:
    return sorted((p for p in directory.glob("step_*.pt") if re.fullmatch(r"step_\d{8,}\.pt", p.name)), reverse=True)


def _load(path: Path) -> tuple[int, dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content["step"], content["state"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError ... for damaged files
        size = path.stat().st_size if path.is_file() else 0
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(f"{path}: not a readable checkpoint, {size} bytes (truncated or damaged: {reason})") from None
