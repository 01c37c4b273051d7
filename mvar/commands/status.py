"""`mvar status`: what is done, running, queued, stopped, failed, missing."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Annotated

import tyro

from mvar import layout
from mvar.commands.options import Answer, InResults, Labels, Number
from mvar.errors import FAILURE, OK, UserError, existing_directory, one_of, say, warn_once

if TYPE_CHECKING:
    from mvar.commands.status_table import Row
    from mvar.runs.store import Store

WILD = "*?["


@dataclass(frozen=True)
class Status(InResults, Answer):
    """Show every run that was begun, asked for or submitted: done, running, queued, stopped, failed, missing.

    From the results directory, and one squeue where runs were submitted to SLURM.

    Example: `mvar status '*mamba*' --state running,failed`
    """

    runs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]", help_behavior_hint="")
    ] = ()
    """Only those: ids, beginnings of ids, names as they are shown, or patterns such as '*mamba*' (in quotes)."""
    state: Labels = ""
    """Only those in one of these states, e.g. failed,missing."""
    watch: Annotated[Number, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="")] = None
    """Look again every so many seconds, until nothing runs or is queued."""

    def execute(self, arguments: list[str]) -> int:
        """Print the table; returns the exit code: 1 where what was asked for or submitted cannot be told."""
        from mvar.runs.store import Store

        store = Store(existing_directory("results", self.results, "one that `mvar run` has made"))
        states = self._states()
        if self.watch is not None and (self.watch < 1 or self.json):
            raise UserError(
                f"watch: {self.watch}{' with --json' * self.json}; allowed: 1 or more seconds, without --json"
            )
        if self.watch is None:
            return self._once(store, states)
        return self._watched(store, states, self.watch)

    def _once(self, store: "Store", states: Sequence[str]) -> int:
        from mvar.commands.console import wide_console
        from mvar.commands.status_table import status_table

        rows, code = self._look(store, states)
        counts = Counter(row.state for row in rows if not row.is_stage)
        if self.json:
            self.answer({"runs": [asdict(row) for row in rows], "counts": dict(counts)})
            return code
        console = wide_console()
        if rows:
            console.print(status_table(rows, console))
        nothing = "no such runs" if self.runs or states else "no runs yet"
        say(", ".join(f"{count} {state}" for state, count in counts.most_common()) or nothing)
        return code

    def _watched(self, store: "Store", states: Sequence[str], seconds: int) -> int:
        """The same table again and again; ends by itself once nothing moves any more."""
        from rich.console import Console
        from rich.live import Live

        from mvar.commands.status_table import status_table
        from mvar.runs.states import QUEUED, RUNNING
        from mvar.runs.store import Store

        console = Console()
        with Live(console=console, auto_refresh=False) as live:
            while True:
                rows, code = self._look(Store(store.root), states)
                live.update(status_table(rows, console), refresh=True)
                if not any(row.state in (RUNNING, QUEUED) for row in rows):
                    return code
                time.sleep(seconds)

    def _look(self, store: "Store", states: Sequence[str]) -> "tuple[list[Row], int]":
        from mvar.cluster.queue import View
        from mvar.commands.status_table import status_rows
        from mvar.runs.repair import damaged_documents

        view = View(store)
        rows = [row for row in status_rows(store, view.names(), view) if self._is_asked(row, states)]
        if view.queue.problem:
            warn_once(f"{view.queue.problem}; states of submitted runs are as their directories say")
        for damaged in damaged_documents(store):
            warn_once(str(damaged))
        lacking = view.queue.num_lost or len(store.manifests()) < len(list(store.root.glob(f"{layout.SWEEPS}/*.json")))
        return rows, FAILURE if lacking else OK

    def _states(self) -> list[str]:
        from mvar.runs.states import DONE, FAILED, INTERRUPTED, MISSING, QUEUED, RUNNING, STOPPED

        allowed = (DONE, RUNNING, QUEUED, STOPPED, FAILED, INTERRUPTED, MISSING)
        states = [state.strip() for state in self.state.split(",") if state.strip()]
        for state in states:
            if state not in allowed:
                raise one_of("state", state, allowed)
        return states

    def _is_asked(self, row: "Row", states: Sequence[str]) -> bool:
        return (not self.runs or any(map(partial(_is_named, row.name), self.runs))) and (
            not states or row.state in states
        )


def _is_named(run_id: str, name: str) -> bool:
    from mvar.runs.spelling import is_short_for

    if set(WILD) & set(name):
        return fnmatchcase(run_id, name)
    return run_id.startswith(name) or is_short_for(name, run_id)
