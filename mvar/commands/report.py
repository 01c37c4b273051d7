"""`mvar report`: tables and figures of what is there."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mvar.errors import OK, USER_ERROR, complain, existing_directory, say, warn
from mvar.escaping import one_line

if TYPE_CHECKING:
    from mvar.analysis.writer import Told


@dataclass(frozen=True)
class Report:
    """Write tables and figures of what is there: one HTML page, Markdown, CSV, LaTeX, PNG, PDF."""

    results: Path = Path("results")
    """Where runs are kept."""

    def execute(self, arguments: list[str]) -> int:
        """Write the report, each problem a line on stderr; returns the exit code."""
        from mvar.analysis.records import NO_RUN
        from mvar.analysis.report import write_report

        results = existing_directory("results", self.results, "one that `mvar run` has made")
        problems: list[str] = []
        with _shown() as progress:
            path = write_report(results, progress, problems.append)
        say(f"report: {path}")
        say(f"page: {path.with_suffix('.html')}")
        if nothing := next((problem for problem in problems if NO_RUN in problem), None):
            return complain(nothing, USER_ERROR)
        for problem in problems:
            warn(problem)
        if problems:  # exit code 0 all the same: what was asked for is written, and a grid may well be half done
            count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
            warn(f"{count}; the report is written all the same, and lists them under Problems")
        return OK


@contextmanager
def _shown() -> "Iterator[Told]":
    """Shows what the report is at: a bar where stderr is a terminal, a line now and then elsewhere."""
    from rich import progress as rich
    from rich.console import Console

    from mvar.runs import display

    console = Console(stderr=True)
    began = printed = time.monotonic()
    what_column = rich.TextColumn("{task.description}", markup=False)
    columns = rich.TextColumn("writing the report"), rich.BarColumn(bar_width=24), what_column
    with rich.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading runs", total=None)

        def show(done: int, total: int, what: str) -> None:
            nonlocal printed
            what = one_line(what)
            bar.update(task, completed=done, total=total, description=what)
            now = time.monotonic()
            if not console.is_terminal and now - printed >= display.LINE_INTERVAL_S:
                printed = now
                at = f" | {what}" if what else ""
                print(f"[{now - began:6.0f} s] report: {done / total:.0%} done{at}", file=sys.stderr, flush=True)

        yield show
