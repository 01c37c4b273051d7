"""metrics.jsonl: one flat JSON object a logged step; trackers see the same rows."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvar import layout
from mvar.errors import UserError, warn
from mvar.files import atomic_write, naming, own_file, read_json, write_json
from mvar.training.tracking import Tracker

Cadence = Sequence[Sequence[int]]  # (step, every) pairs: from that step on a row was written every so many


def is_logged(done: int, steps: int, every: int) -> bool:
    """Whether there is a row of the step that makes `done` of `steps`."""
    return done % every == 0 or done in (1, steps)


def is_observed(done: int, steps: int, every: int, points: int) -> bool:
    """Whether the row of a logged step also has what is measured `points` times in a training: the first logged step
    from each `steps / points` on, so that the last step has it."""
    before = (done - 1) // every * every or min(done - 1, 1)  # the logged step before
    return is_logged(done, steps, every) and done * points // steps > before * points // steps


def logged_steps(cadence: Cadence, step: int) -> set[int]:
    """The steps up to `step`, not the training's last, that have a row."""
    ends = [*(begin for begin, _ in cadence[1:]), step]
    multiples = {
        done
        for (begin, every), end in zip(cadence, ends, strict=True)
        for done in range(begin - begin % every + every, min(end, step) + 1, every)
    }
    return multiples | ({1} if step else set())


def missing_rows(directory: Path) -> str:
    """One line on the rows that a resumed training, or `mvar repair`, found missing; empty where there were all."""
    try:
        found = read_json(directory / layout.METRICS_MISSING)
        if found.get("all"):
            return f"metrics.jsonl: all rows up to step {found['step']} are missing: removed or damaged"
        return (
            f"metrics.jsonl: {found['missing']} of {found['rows']} rows up to step {found['step']} were missing when "
            f"the training went on (steps {found['first']} to {found['last']}): removed, cut or damaged"
        )
    except FileNotFoundError:
        return ""
    except (OSError, UserError, KeyError, TypeError, AttributeError):
        return f"{layout.METRICS_MISSING}: cannot be read; rows of metrics.jsonl were missing when the training went on"


def note_all_missing(directory: Path, step: int) -> None:
    """Record in `metrics_missing.json` that a training that ended at `step` has no rows left."""
    write_json(directory / layout.METRICS_MISSING, {"step": step, "all": True})


def cut_rows(path: Path, step: int) -> set[int]:
    """Drop the rows after `step`, and what a kill left of a half-written one: training is about to redo them.

    Returns:
        The steps of the rows that stay.
    """
    if not path.exists():
        return set()
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [_step_of(line) if line.endswith(b"\n") else math.inf for line in lines]
    kept = [line for line, found in zip(lines, steps, strict=True) if found <= step]
    if len(kept) < len(lines):
        with atomic_write(path) as file:
            file.write(b"".join(kept))
    return {int(found) for found in steps if found <= step}


def _step_of(line: bytes) -> float:
    """Infinity for what is no row."""
    try:
        step = json.loads(line)["step"]
        return step if type(step) is int else math.inf
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


class MetricsLog:
    """Appends rows to `directory/metrics.jsonl`, after cutting it back to `step`.

    Rows that should be there by the cadence and are not are warned of, and recorded in `metrics_missing.json`.
    """

    def __init__(self, directory: Path, step: int, cadence: Cadence, trackers: Sequence[Tracker] = ()) -> None:
        self._path, self._trackers = directory / layout.METRICS, trackers
        directory.mkdir(parents=True, exist_ok=True)
        wanted = logged_steps(cadence, step)
        missing = sorted(wanted - cut_rows(self._path, step))
        self._record(directory, step, missing, len(wanted))
        self._file = own_file(self._path).open("a", encoding="utf-8")

    @staticmethod
    def _record(directory: Path, step: int, missing: list[int], wanted: int) -> None:
        if not missing:
            (directory / layout.METRICS_MISSING).unlink(missing_ok=True)
            return
        values = {"step": step, "rows": wanted, "missing": len(missing), "first": missing[0], "last": missing[-1]}
        write_json(directory / layout.METRICS_MISSING, values)
        warn(f"{directory}: {missing_rows(directory)}; the training goes on, its curve has a gap")

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it must hold `step`. A number that JSON does not have (infinity, NaN) becomes null."""
        text = json.dumps({k: v if math.isfinite(v) else None for k, v in row.items()})
        with naming(self._path):
            self._file.write(text + "\n")
            self._file.flush()
        for tracker in self._trackers:
            tracker.log(row)

    def sync(self) -> None:
        """Force the rows to the disk: before a checkpoint, so that it is never ahead of its metrics."""
        with naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, and the trackers."""
        for tracker in self._trackers:
            tracker.close()
        with naming(self._path):
            self._file.close()
