"""What a user sees while something takes its time: bars on a terminal, a line now and then elsewhere.

`make_display` shows the tasks of runs, `shown` any other work that knows how far it is.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from mvar.escaping import one_line, rich_text
from mvar.runs.pace import STALLED_S
from mvar.runs.states import DONE, FAILED

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from mvar.runs.plan import Task
    from mvar.runs.workers import Outcome

LINE_INTERVAL_S = 15.0
LONG_S = 10 * 365.25 * 24 * 3600


class Display(Protocol):
    """Shows tasks as they begin, advance and end, and all of them as a whole."""

    def begin(self, task: "Task") -> None:
        """A worker has taken a task."""

    def advance(self, task: "Task", stage: str, done: int, total: int) -> None:
        """A running task is at `done` of `total` in a stage."""

    def end(self, task: "Task", outcome: "Outcome") -> None:
        """A task has ended."""

    def overall(self, share: float, left_s: float | None, still_s: float = 0.0) -> None:
        """All tasks: the share of the work that is done, 0 to 1, the seconds left if they are known, and for how many
        seconds nothing has moved."""

    def close(self) -> None:
        """Nothing more follows."""


def make_display(tasks: "Sequence[Task]", stream: TextIO | None = None) -> Display:
    """Bars where the stream (stderr) is a terminal, lines elsewhere."""
    out = stream or sys.stderr
    return Bars(tasks, out) if out.isatty() else Lines(tasks, out)


def duration(seconds: float) -> str:
    """`12 days`, `2 h 05 min`, `3 min 20 s` or `45 s`; what is not worth counting is `more than 10 years`."""
    if not seconds < LONG_S:
        return "more than 10 years"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 4 * 24 * 60:
        return f"{minutes / (24 * 60):,.0f} days"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def left_text(left_s: float | None, still_s: float = 0.0) -> str:
    """`, about 3 min 00 s left`; where that is not known and nothing moves, for how long."""
    if left_s is not None:
        return f", about {duration(left_s)} left"
    return f", nothing has moved for {duration(still_s)}" if still_s >= STALLED_S else ""


class Shown(Protocol):
    """Says how far a piece of work is."""

    def __call__(self, done: int, total: int, what: str = "") -> None:
        """`done` of `total` (0: not known), and what is being done."""


@contextmanager
def shown(name: str, label: str = "", stream: TextIO | None = None) -> Iterator[Shown]:
    """Inside the block: a bar where the stream (stderr) is a terminal, which then goes; elsewhere a line every 15 s.

    Args:
        name: of the work, in lines.
        label: of the bar, if another.
        stream: None: stderr.
    """
    out = stream or sys.stderr
    if out.isatty():
        with _bars(out, transient=True) as bars:
            bar = bars.add_task(one_line(label or name), total=None, note="")

            def move(done: int, total: int, what: str = "") -> None:
                bars.update(bar, completed=done, total=total or None, note=one_line(what))

            yield move
        return
    began = printed = time.monotonic()

    def write(done: int, total: int, what: str = "") -> None:
        nonlocal printed
        now = time.monotonic()
        if total and now - printed >= LINE_INTERVAL_S:
            printed = now
            _print_line(out, now - began, f"{name}: {done / total:.0%} done" + (f" | {what}" if what else ""))

    yield write


def _print_line(stream: TextIO, elapsed_s: float, text: str) -> None:
    print(f"[{elapsed_s:6.0f} s] {one_line(text)}", file=stream, flush=True)


def _bars(stream: TextIO, transient: bool = False) -> "RichProgress":
    """Bars with a name, a share in percent, and the field `note`. No markup in any of them."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(*columns, console=Console(file=stream), refresh_per_second=4, transient=transient)


class Lines:
    """One line a change of state, and one of progress every 15 s."""

    def __init__(self, tasks: "Sequence[Task]", stream: TextIO) -> None:
        self._stream = stream
        self._num_tasks, self._ended = len(tasks), 0
        self._running: dict[str, str] = {}
        self._began = self._printed = time.monotonic()

    def _print(self, text: str) -> None:
        _print_line(self._stream, time.monotonic() - self._began, text)

    def begin(self, task: "Task") -> None:
        self._running[task.key] = ""
        self._print(f"begin {task.name}")

    def advance(self, task: "Task", stage: str, done: int, total: int) -> None:
        self._running[task.key] = f"{task.name}: {stage} {done}/{total}" if stage else ""

    def end(self, task: "Task", outcome: "Outcome") -> None:
        self._running.pop(task.key, None)
        self._ended += 1
        reason = f": {outcome.reason}" if outcome.reason else ""
        after = f" after {duration(outcome.seconds)}" if outcome.seconds else ""
        self._print(f"{outcome.state} {task.name}{after} ({self._ended} of {self._num_tasks}){reason}")

    def overall(self, share: float, left_s: float | None, still_s: float = 0.0) -> None:
        now = time.monotonic()
        if now - self._printed < LINE_INTERVAL_S:
            return
        self._printed = now
        left = left_text(left_s, still_s)
        running = "; ".join(text for text in self._running.values() if text)
        self._print(f"{share:.0%} done{left} | {running}")

    def close(self) -> None:
        self._stream.flush()


class Bars:
    """A bar for each running task and one for everything."""

    def __init__(self, tasks: "Sequence[Task]", stream: TextIO) -> None:
        self._progress = _bars(stream)
        self._progress.start()
        self._began = time.monotonic()
        self._num_tasks, self._ended = len(tasks), 0
        self._bars: dict[str, TaskID] = {}
        self._all = self._progress.add_task("everything", total=1.0, note="")

    def begin(self, task: "Task") -> None:
        self._bars[task.key] = self._progress.add_task(one_line(task.name), total=None, note="starting")

    def advance(self, task: "Task", stage: str, done: int, total: int) -> None:
        note = f"{stage} {done}/{total}" if stage else "starting"
        self._progress.update(self._bars[task.key], completed=done, total=total or None, note=note)

    def end(self, task: "Task", outcome: "Outcome") -> None:
        if task.key in self._bars:
            self._progress.remove_task(self._bars.pop(task.key))
        self._ended += 1
        reason = f": {outcome.reason}" if outcome.reason else ""
        after = f" after {duration(outcome.seconds)}" if outcome.seconds else ""
        style = {DONE: "green", FAILED: "red"}.get(outcome.state, "yellow")
        told = rich_text(f" {task.name}{after}{reason}", "default")
        self._progress.console.print(rich_text(outcome.state, style).append(" ").append_text(told))

    def overall(self, share: float, left_s: float | None, still_s: float = 0.0) -> None:
        left = left_text(left_s, still_s)
        note = f"{self._ended}/{self._num_tasks} tasks, {duration(time.monotonic() - self._began)}{left}"
        self._progress.update(self._all, completed=share, note=note)

    def close(self) -> None:
        self._progress.stop()
