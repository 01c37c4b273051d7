"""What is shown while runs are made: bars on a terminal, and an honest estimate of what is left."""

import io
import re
from concurrent.futures import Future
from itertools import pairwise
from types import SimpleNamespace

import pytest

from mvar.config import override
from mvar.presets import PRESETS
from mvar.runs.display import Bars, Lines, duration, make_display, shown
from mvar.runs.plan import RUN, Task, run_flops
from mvar.runs.runner import _Runner, task_share
from mvar.runs.states import DONE, FAILED
from mvar.runs.store import Store
from mvar.runs.workers import Outcome

# Two steps: training and sampling cost about the same.
CONFIGS = [override(PRESETS["smoke"], {"seed": seed, "train.steps": 2}) for seed in range(2)]
RUNS = [Task(RUN, config, config.run_id, run_flops(config)) for config in CONFIGS]
STAGES = [Task("tokenizer", CONFIGS[0], f"tokenizer-{letter}", 1e9) for letter in "ab"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and shows what was written since one looked."""

    def isatty(self) -> bool:
        return True

    def look(self) -> str:
        """The text, escape sequences left out."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())
        self.seek(0)
        self.truncate()
        return text


class Clock:
    """In place of the module `time`: seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    for module in ("mvar.runs.runner.time", "mvar.runs.display.time"):
        monkeypatch.setattr(module, clock)
    return clock


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "50"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def drawn(bars: Bars, terminal: Terminal) -> dict[str, str]:
    """The bars of a fresh drawing, by what they are of; rich draws by itself only four times a second."""
    terminal.look()
    bars._progress.refresh()
    lines = [line.strip() for line in terminal.look().splitlines()]
    return {line.split()[0]: line for line in lines if line}


def test_bars_are_for_terminals(terminal):
    bars = make_display(RUNS, terminal)
    bars.close()
    assert isinstance(bars, Bars)
    assert isinstance(make_display(RUNS, io.StringIO()), Lines)


def test_a_bar_for_each_running_task_and_one_for_everything(terminal, clock):
    first, second = RUNS
    bars = make_display(RUNS, terminal)
    try:
        bars.overall(0.0, None)
        shown = drawn(bars, terminal)
        assert shown.keys() == {"everything"} and shown["everything"].endswith("0 % 0/2 tasks, 0 s")

        bars.begin(first)
        bars.begin(second)
        bars.advance(first, "train", 250, 1000)
        bars.advance(second, "", 0, 0)
        clock.now += 65
        bars.overall(0.125, 455.0)
        shown = drawn(bars, terminal)
        assert shown.keys() == {"everything", first.name, second.name}
        assert shown["everything"].endswith("12 % 0/2 tasks, 1 min 05 s, about 7 min 35 s left")
        assert shown[first.name].endswith("25 % train 250/1000")
        assert shown[second.name].endswith("0 % starting")

        bars.advance(first, "sample", 30, 40)
        assert drawn(bars, terminal)[first.name].endswith("75 % sample 30/40")
        bars.end(first, Outcome(DONE, seconds=61.0))
        assert f"done {first.name} after 1 min 01 s" in terminal.look()
        bars.end(second, Outcome(FAILED, "ValueError: a [red]bad[/red] loss"))
        assert f"failed {second.name}: ValueError: a [red]bad[/red] loss" in terminal.look()  # no markup
        bars.overall(1.0, 0.0)
        shown = drawn(bars, terminal)
        assert shown.keys() == {"everything"}
        assert shown["everything"].endswith("100 % 2/2 tasks, 1 min 05 s, about 0 s left")
    finally:
        bars.close()
    assert "everything" in terminal.look()  # the last drawing stays


STRANGE = "a\x1b[2J\x1b]0;t\x07 [red]b[/red] [/] \udcff\r\n c"


def test_strange_names_and_reasons_are_shown_and_not_obeyed(terminal, clock):
    """Bars know no markup in them; lines stay lines."""
    task, lines = Task("tokenizer", CONFIGS[0], STRANGE, 1.0), io.StringIO()
    for display in (make_display([task], terminal), make_display([task], lines)):
        display.begin(task)
        display.advance(task, "tokenizer", 1, 2)
        clock.now += 60
        display.overall(0.5, None)
        display.end(task, Outcome(FAILED, STRANGE))
        display.close()
    shown = "a�[2J�]0;t� [red]b[/red] [/] � c"
    assert [line.split("] ", 1)[1] for line in lines.getvalue().splitlines()] == [
        f"begin {shown}",
        f"50% done | {shown}: tokenizer 1/2",
        f"failed {shown} (1 of 1): {shown}",
    ]
    written = terminal.getvalue()
    assert "\x1b[2J" not in written and "\x1b]0" not in written and "\x07" not in written
    assert f"failed {shown}: {shown}" in terminal.look()


def test_other_work_is_a_line_every_15_s(clock):
    stream = io.StringIO()
    with shown("report", "writing the report", stream) as progress:
        for second in range(41):
            progress(second, 40, STRANGE if second >= 30 else "")
            clock.now += 1
        clock.now += 60
        progress(3, 0)  # of a total that is not known there is nothing to say
    what = "a�[2J�]0;t� [red]b[/red] [/] � c"
    assert stream.getvalue() == f"[    15 s] report: 38% done\n[    30 s] report: 75% done | {what}\n"


def test_other_work_is_a_bar_on_a_terminal_that_then_goes(terminal):
    with shown("report", "writing the report", terminal) as progress:
        progress(1, 4, STRANGE)
    written = terminal.getvalue()
    assert "\x1b[2J" not in written and "\x1b]0" not in written and "\x07" not in written
    text = terminal.look()
    assert "writing the report" in text and " 25 % a�[2J�]0;t� [red]b[/red] [/] � c" in text
    assert written.endswith("\x1b[2K")  # its line is taken back


def test_what_never_ran_ends_too(terminal):
    bars = make_display(RUNS, terminal)
    bars.end(RUNS[0], Outcome("skipped", "needs tokenizer-a"))
    assert f"skipped {RUNS[0].name}: needs tokenizer-a" in terminal.look()
    bars.close()


class Course:
    """A runner without workers: tasks are where they are said to be; notes the seconds that it says are left."""

    def __init__(self, tasks, clock, tmp_path, display=None, workers=1) -> None:
        self.clock, self.left_s, self.shares = clock, [], []
        forward = display.overall if display else lambda share, left_s: None
        display = display or SimpleNamespace(advance=lambda *_: None, end=lambda *_: None)

        def overall(share, left_s, still_s=0.0):
            self.shares.append(share)
            self.left_s.append(left_s)
            forward(share, left_s)

        shown = SimpleNamespace(advance=display.advance, end=display.end, overall=overall)
        self.runner = _Runner(list(tasks), Store(tmp_path), [{}] * workers, shown)

    def begin(self, worker, task) -> None:
        self.runner._running[Future()] = ((worker,), task)

    def at(self, seconds: float, worker: int, stage: str, done: int, total: int) -> float | None:
        """What is said to be left, `seconds` after the last word."""
        self.clock.now += seconds
        self.runner._board.write(worker, stage, done, total)
        self.runner._show()
        return self.left_s[-1]

    def end(self, worker) -> None:
        (future,) = [f for f, ((number,), _) in self.runner._running.items() if number == worker]
        future.set_result(Outcome(DONE))
        self.runner._take(future)


def test_what_is_left_falls_as_work_proceeds(clock, tmp_path):
    """Two tasks of 1000 steps at one step a second, one after the other: 2000 s, less with every second."""
    course = Course(STAGES, clock, tmp_path)
    for number, task in enumerate(STAGES):
        course.begin(0, task)
        for step in range(1, 1001):
            left_s = course.at(1, 0, "tokenizer", step, 1000)
            truth = 2000 - 1000 * number - step
            if 1000 * number + step > 100:
                assert left_s == pytest.approx(truth, rel=0.02, abs=1)
        course.end(0)
    known = [left_s for left_s in course.left_s if left_s is not None]
    assert course.left_s[:10] == [None] * 10 and len(known) > 1900  # too early for a word, then always one
    assert all(later < earlier for earlier, later in pairwise(known))
    assert known[-1] == pytest.approx(0, abs=1e-9)
    assert course.shares == sorted(course.shares) and course.shares[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("task", "stage"),
    [(STAGES[0], "tokenizer"), (RUNS[0], "train"), (RUNS[0], "sample")],
    ids=["stage", "train", "sample"],
)
def test_resumed_work_is_not_counted_as_speed(task, stage, clock, tmp_path):
    """An earlier call left a task at 600 of 1000: ten more in ten seconds are not 610 in ten seconds."""
    course, steps = Course([task], clock, tmp_path), 1000
    course.begin(0, task)
    assert course.at(1, 0, "", 0, 0) is None
    assert course.at(1, 0, stage, 600, steps) is None  # much is done, but nothing is known of the speed
    assert course.shares[-1] == pytest.approx(task_share(task, stage, 600, steps)) and course.shares[-1] > 0.25
    share_a_second = task_share(task, stage, 1, steps) - task_share(task, stage, 0, steps)
    for step in range(601, steps + 1):
        left_s, truth_s = course.at(1, 0, stage, step, steps), (1 - course.shares[-1]) / share_a_second
        if step > 700:
            assert left_s == pytest.approx(truth_s, rel=0.03, abs=1e-6)
    known = [left_s for left_s in course.left_s if left_s is not None]
    assert len(known) > 300 and all(later < earlier for earlier, later in pairwise(known))


def test_work_that_was_found_in_a_task_that_has_ended_is_not_counted_either(clock, tmp_path):
    """The first of two tasks had one step to go; the second takes its own time."""
    course = Course(STAGES, clock, tmp_path)
    course.begin(0, STAGES[0])
    course.at(1, 0, "tokenizer", 999, 1000)
    course.at(1, 0, "tokenizer", 1000, 1000)
    course.end(0)
    course.begin(0, STAGES[1])
    for step in range(1, 1001):
        left_s = course.at(1, 0, "tokenizer", step, 1000)
        if step > 100:
            assert left_s == pytest.approx(1000 - step, rel=0.03)


def test_the_bars_say_what_the_runner_reckons(terminal, clock, tmp_path):
    """The same seconds as text: 33 minutes at first, 16 min 40 s when the first of two tasks is done."""
    bars = make_display(STAGES, terminal)
    try:
        course = Course(STAGES, clock, tmp_path, bars)
        bars.begin(STAGES[0])
        course.begin(0, STAGES[0])
        texts = []
        for step in range(0, 1001, 5):
            left_s = course.at(5, 0, "tokenizer", step, 1000)
            texts.append(drawn(bars, terminal)["everything"])
            assert texts[-1].endswith(f", about {duration(left_s)} left") if left_s else "left" not in texts[-1]
    finally:
        bars.close()
    assert "left" not in texts[0] and " 50 % 0/2 tasks, 16 min 45 s, about 16 min 40 s left" in texts[-1]
