"""What can be known of a run or a stage from its other files, where its `status.json` is damaged.

A status is derivable: what is finished has left its weights and its measurements. All else counts as interrupted, and
the command that made it goes on from the last checkpoint.
"""

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mvar import layout
from mvar.runs.documents import Damaged, read_document
from mvar.runs.states import DONE, RUNNING

# Kind of a shared stage -> its files that are there once it is done; documents among them must be readable.
FINISHED = {
    "tokenizer": (layout.TOKENIZER, layout.QUALITY),
    "tokens": (f"heldout/{layout.META}",),
    "extractor": (layout.EXTRACTOR,),
    "vectors": (layout.META,),
}
END_BYTES = 1 << 13  # of metrics.jsonl: a row has some hundred


def run_status(path: Path, evaluations: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The status document of a run: done where its weights and an evaluation are there, else as of a killed process.

    Args:
        path: the run's directory.
        evaluations: the finished ones.
        steps: of its training; 0 where that is not known.
    """
    trained = (path / layout.MODEL).is_file()
    row = last_row(path / layout.METRICS)
    step = steps if trained else row.get("step", 0)
    times = (record.get("timing", {}).get("train_s") for record in evaluations.values())
    train_s = next((time for time in times if time is not None), row.get("train/elapsed_s", 0.0))
    stage = "evaluate" if evaluations else "sample" if trained else "train"
    return _status(path, trained and bool(evaluations), stage, step=step, steps=steps, train_s=float(train_s))


def stage_status(path: Path) -> dict[str, Any]:
    """The status document of a shared stage: done where all is there that it leaves at its end."""
    kind = path.name.partition("-")[0]
    wanted = FINISHED.get(kind, ())
    return _status(path, bool(wanted) and all(_is_sound(path / name) for name in wanted), kind)


def _status(path: Path, done: bool, stage: str, **values: Any) -> dict[str, Any]:
    began = {"step": 0, "steps": 0, "train_s": 0.0, **values, "reason": None}
    updated = datetime.fromtimestamp((path / layout.STATUS).stat().st_mtime, UTC).isoformat(timespec="seconds")
    return began | {"state": DONE if done else RUNNING, "stage": stage, "updated": updated}


def _is_sound(path: Path) -> bool:
    if path.suffix != ".json":
        return path.is_file()
    try:
        read_document(path)
    except (Damaged, OSError):
        return False
    return True


def last_row(path: Path) -> dict[str, Any]:
    """The last complete row of `metrics.jsonl`; empty where there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        row = metrics_row(line)
        if row:
            return row
    return {}


def metrics_problem(path: Path, finished: Callable[[], bool]) -> str:
    """What is wrong with the ends of `metrics.jsonl`; empty where nothing is, or no such file is there.

    The quick look of `mvar status`, over thousands of runs: it reads `END_BYTES` of either end and parses the first
    and the last whole line, which tells a file that is empty, cut, or of another shape. What is damaged in between is
    found by `mvar repair`, which reads every line.

    Args:
        path: the file.
        finished: whether training is over, asked only where it matters: until then a file may have no row yet, and
            its last line may be half written.
    """
    try:
        with open(path, "rb") as file:
            head = tail = file.read(END_BYTES)
            if len(head) == END_BYTES:
                file.seek(max(0, os.fstat(file.fileno()).st_size - END_BYTES))
                tail = file.read()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not head:
        return "holds no row" if not path.with_name(layout.METRICS_MISSING).exists() and finished() else ""
    *lines, rest = tail.split(b"\n")
    whole = [head.partition(b"\n")[0], lines[-1]] if lines else [rest] if len(rest) == END_BYTES else []
    if not all(metrics_row(line.decode(errors="replace")) for line in whole):
        return "its first or last line cannot be read"
    return "its last line is cut" if rest and finished() else ""


def metrics_row(line: str) -> dict[str, Any]:
    """A line of `metrics.jsonl` as it was logged; empty for one that is cut, damaged, or just being written."""
    try:
        row = json.loads(line)
        numbers = (row["train/loss"], row["step"], row.get("train/elapsed_s", 0.0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    loss, step, elapsed_s = numbers
    sound = type(step) is int and 0 <= step < 1 << 53 and isinstance(elapsed_s, int | float)
    return row if sound and (loss is None or isinstance(loss, float)) else {}
