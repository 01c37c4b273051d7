"""metrics.jsonl: one flat JSON object a logged step; and TensorBoard beside it where it is asked for."""

import json
import math
import os
from pathlib import Path
from typing import Any

from mvar.errors import UserError
from mvar.files import atomic_write, naming


def truncate_rows(path: Path, step: int) -> None:
    """Drop the rows after `step`, and what a kill left of a half-written one: training is about to redo them."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
    if len(kept) < len(lines):
        with atomic_write(path) as file:
            file.write(b"".join(kept))


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class MetricsLog:
    """Appends rows to `directory/metrics.jsonl`, after cutting it back to `step`.

    Raises:
        UserError: TensorBoard is asked for but not installed.
    """

    def __init__(self, directory: Path, step: int, tensorboard: bool) -> None:
        self._path = directory / "metrics.jsonl"
        self._board = _open_board(directory / "tensorboard", step) if tensorboard else None
        directory.mkdir(parents=True, exist_ok=True)
        truncate_rows(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it must hold `step`. A number that JSON does not have (infinity, NaN) becomes null."""
        text = json.dumps({k: v if math.isfinite(v) else None for k, v in row.items()})
        with naming(self._path):
            self._file.write(text + "\n")
            self._file.flush()
        if self._board:
            for name, value in row.items():
                self._board.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Force the rows to the disk: before a checkpoint, so that it is never ahead of its metrics."""
        with naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        with naming(self._path):
            self._file.close()
        if self._board:
            self._board.close()


def _open_board(directory: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("runtime.tensorboard: true needs the package tensorboard; pip install tensorboard") from None
    return SummaryWriter(str(directory), purge_step=step + 1)
