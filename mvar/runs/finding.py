"""What `mvar repair` finds: its form, and what is found in the files of a run that grow while it works."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvar import layout
from mvar.errors import UserError
from mvar.files import atomic_write
from mvar.rows import shortfall
from mvar.runs.derived import metrics_row
from mvar.runs.states import DONE
from mvar.runs.store import RunDirectory
from mvar.training.metrics_log import note_all_missing


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and what can be done."""

    path: Path
    problem: str  # one line, with the path
    action: str  # what `mend` does, or why there is none
    mend: Callable[[], Any] | None = None


def metrics_findings(run: RunDirectory) -> Iterator[Finding]:
    """Lines of `metrics.jsonl` that are none, the last one may have been cut by a kill; or all of a finished run."""
    try:
        lines = run.metrics.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    except OSError:
        return
    if not lines:
        if not (run.path / layout.METRICS_MISSING).exists() and (steps := finished_steps(run)):
            action = f"is lost, and with it the training curve; --yes notes that in {layout.METRICS_MISSING}"
            problem = f"{run.metrics}: no row of {steps} finished steps is there"
            yield Finding(run.metrics, problem, action, lambda: note_all_missing(run.path, steps))
        return
    kept = [line for line in lines if metrics_row(line.decode(errors="replace"))]
    if len(kept) == len(lines):
        return

    def write() -> None:
        with atomic_write(run.metrics) as file:
            file.write(b"".join(kept))
        if not kept and (steps := finished_steps(run)):
            note_all_missing(run.path, steps)

    count = len(lines) - len(kept)
    problem = f"{run.metrics}: {count} of {len(lines)} lines cannot be read"
    yield Finding(run.metrics, problem, "these lines are dropped; their points of the training curve are lost", write)


def finished_steps(run: RunDirectory) -> int:
    """Steps of a finished training; 0 where it is not finished, or nothing was trained."""
    try:
        return run.stored().config.train.steps if run.state() == DONE else 0
    except UserError:
        return 0


def image_findings(run: RunDirectory) -> Iterator[Finding]:
    """Records of images that were being drawn when a process ended, and that are not there any more."""
    try:
        data = run.stored().config.data
        row_bytes = data.image_size**2 * data.channels
    except UserError:
        row_bytes = None
    for path in sorted(run.path.glob(f"{layout.SAMPLES}/*/{layout.SAMPLES_PROGRESS}")):
        rows = path.with_name(layout.SAMPLES_PARTIAL)
        if problem := shortfall(rows, path, row_bytes):
            again = "its images are drawn again from the first, to the same bytes, by the command that made the run"
            told = "its images are finished" if path.with_name(layout.SAMPLES_NPZ).is_file() else again

            def drop(path: Path = path, rows: Path = rows) -> None:
                rows.unlink(missing_ok=True)
                path.unlink(missing_ok=True)

            yield Finding(path, f"{path}: {problem}", f"is deleted; {told}", drop)
