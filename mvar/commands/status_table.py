"""What `mvar status` shows: every run and shared stage, told apart even on a narrow terminal."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mvar import layout
from mvar.commands.narrow import Narrow, shortened_ids
from mvar.escaping import one_line, rich_text
from mvar.runs.derived import last_row
from mvar.runs.display import duration
from mvar.runs.documents import read_or_warn
from mvar.runs.states import DONE, FAILED, INTERRUPTED, MISSING, QUEUED, RUNNING, STOPPED, Seen
from mvar.runs.store import Directory, RunDirectory, Store

STYLES = {DONE: "green", RUNNING: "cyan", QUEUED: "blue", FAILED: "red", STOPPED: "yellow"}
STYLES |= {INTERRUPTED: "yellow", MISSING: "dim"}
DRAWN, BEGUN = "drawn", "begun"  # of an evaluation: its images are there, or some of them; it is not measured
NARROW = Narrow(
    "stage or run",
    dispensable=("speed", "loss", "updated", "evaluations", "job"),
    breakable={"why": 16},  # characters of it that a line keeps
)


@dataclass(frozen=True)
class Row:
    """One run or shared stage, as `mvar status --json` has it."""

    name: str
    is_stage: bool
    state: str
    at: str = ""  # the stage of the pipeline that it is in
    step: int = 0
    steps: int = 0
    loss: float | None = None
    left_s: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None  # share of the device's rate; None where that is not known
    peak_mib: float | None = None  # of a GPU
    job: str = ""
    node: str = ""
    updated: str = ""  # ISO 8601
    reason: str = ""
    evaluations: dict[str, str] = field(default_factory=dict)  # of a run, by id: done, drawn, begun or missing


def status_rows(store: Store, names: Iterable[str], look: Callable[[Directory], Seen]) -> list[Row]:
    """Every shared stage, then the runs of the given names, as `look` sees them."""
    rows = [_row(stage, look(stage), {}, True) for stage in store.stages()]
    asked: dict[str, list[str]] = {}
    for manifest in store.manifests():
        for cell in manifest["cells"]:
            for run_id in cell["run_ids"]:
                asked.setdefault(run_id, []).extend(cell.get("evaluation_ids", ()))
    for name in names:
        run = store.run(name)
        seen = look(run)
        row = last_row(run.metrics) if seen.status else {}
        rows.append(_row(run, seen, row, False, evaluations(run, asked.get(name, ()))))
    return rows


def evaluations(run: RunDirectory, asked: Iterable[str]) -> dict[str, str]:
    """What has become of a run's evaluations, by id: of those that were asked for, and of those that were begun."""
    measured = read_or_warn(run.path / layout.EVAL, foreign_too=True).get("evaluations", {})
    found = dict.fromkeys(asked, MISSING)
    for folder in sorted((run.path / layout.SAMPLES).glob("*/")):
        found[folder.name] = DRAWN if (folder / layout.SAMPLES_NPZ).is_file() else BEGUN
    return found | dict.fromkeys(measured, DONE)


def _row(
    directory: Directory, seen: Seen, row: dict[str, Any], is_stage: bool, evaluated: Mapping[str, str] | None = None
) -> Row:
    status = seen.status or {}
    step, steps = status.get("step", 0), status.get("steps", 0)
    left = None
    if steps and seen.state == RUNNING and row.get("step"):
        left = row["train/elapsed_s"] / row["step"] * (steps - step)
    return Row(
        name=directory.name,
        is_stage=is_stage,
        state=seen.state,
        at=str(status.get("stage", "")),
        step=step,
        steps=steps,
        loss=row.get("train/loss"),
        left_s=left,
        tokens_per_s=row.get("train/tokens_per_s"),
        mfu=row.get("train/mfu"),
        peak_mib=row.get("train/peak_mib"),
        job=seen.job,
        node=seen.node,
        updated=str(status.get("updated", "")),
        reason=seen.reason,
        evaluations=dict(evaluated or {}),
    )


def status_table(rows: Sequence[Row], console: Console) -> RenderableType:
    """The table, without empty columns; where it does not fit the console names are cut to what tells them apart."""
    now = datetime.now(UTC)
    columns: dict[str, Sequence[str]] = {
        "state": [row.state for row in rows],
        "at": [_where(row) for row in rows],
        "loss": ["" if row.loss is None else f"{row.loss:.3f}" for row in rows],
        "left": ["" if row.left_s is None else duration(row.left_s) for row in rows],
        "evaluations": [_counted(row.evaluations) for row in rows],
        "speed": [_speed(row) if row.state == RUNNING else "" for row in rows],
        "job": [f"{row.job} on {row.node}" if row.node else row.job for row in rows],
        "updated": [ago(row.updated, now) for row in rows],
        "why": [row.reason for row in rows],
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    names, columns, left_out = NARROW.fit([row.name for row in rows], columns, console.width, lambda: shortened(rows))
    table = Table()
    table.add_column(NARROW.heading, overflow="fold")
    for title in columns:
        table.add_column(title, overflow="fold", no_wrap=title != "why")
    for number, name in enumerate(names):
        told = {title: cells[number] for title, cells in columns.items()}
        style = STYLES.get(told["state"], "")
        table.add_row(rich_text(name), *(rich_text(text, style * (title == "state")) for title, text in told.items()))
    return Group(table, Text(left_out, "dim")) if left_out else table


def _speed(row: Row) -> str:
    """`12,345 tokens/s, MFU 41%, 63.2 GB`; what is not known of the device is left out."""
    parts = [f"{row.tokens_per_s:,.0f} tokens/s"] if row.tokens_per_s is not None else []
    parts += [f"MFU {row.mfu:.0%}"] if row.mfu is not None else []
    parts += [f"{row.peak_mib * 2**20 / 1e9:,.1f} GB"] if row.peak_mib is not None else []
    return ", ".join(parts)


def _where(row: Row) -> str:
    """Of what is done: nothing, it is at its end."""
    if row.state == DONE:
        return ""
    return f"{row.at} {row.step}/{row.steps}" if row.steps else row.at


def _counted(found: Mapping[str, str]) -> str:
    """`5 done, 1 missing`; one evaluation is as its run."""
    counts = Counter(found.values()) if len(found) > 1 else {}
    return ", ".join(f"{counts[state]} {state}" for state in (DONE, DRAWN, BEGUN, MISSING) if counts.get(state))


def shortened(rows: Sequence[Row]) -> list[str]:
    """The names of rows, those of runs without what all of them share."""
    told = iter(shortened_ids([row.name for row in rows if not row.is_stage]))
    return [row.name if row.is_stage else next(told) for row in rows]


def ago(updated: str, now: datetime) -> str:
    """`5 s ago`, `3 min ago`, `2 h ago`, `12 days ago`; what is no time stays what it is."""
    try:
        seconds = (now - datetime.fromisoformat(updated)).total_seconds()
    except (ValueError, TypeError):
        return one_line(updated)
    if seconds < 0:
        return "just now"
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
