"""`mvar logs`: what a run's job printed; of a run on this machine, what it left."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from mvar import layout
from mvar.commands.options import InResults
from mvar.errors import OK, UserError, existing_directory, say

if TYPE_CHECKING:
    from mvar.runs.store import Directory, Store


@dataclass(frozen=True)
class Logs(InResults):
    """Show the end of the logs of a run's (or a shared stage's) latest job, and where they are.

    Of one that was made on this machine: its state, the last rows of its metrics as a table, and why it failed.

    Example: `mvar logs digits --lines 100`
    """

    run: tyro.conf.Positional[str]
    """Run id or stage, or a unique beginning of one."""
    lines: int = 40
    """The last lines of each log, or rows of the metrics; 0: all."""

    def execute(self, arguments: list[str]) -> int:
        """Print them; returns the exit code."""
        from mvar.cluster.find import find_submitted
        from mvar.cluster.submission import log_paths
        from mvar.runs.store import Store

        if self.lines < 0:
            raise UserError(f"lines: {self.lines}; allowed: 1 or more, 0 for all")
        store = Store(existing_directory("results", self.results, "one that `mvar run` or `mvar submit` has made"))
        found = find_submitted(store, self.run)
        if not found:
            directory = _directory(store, self.run)
            self._say_state(directory)
            self._say_files(
                [path for name in (layout.METRICS, layout.ERROR) if (path := directory.path / name).is_file()]
            )
            return OK
        job_id = found.job.element_id(found.index)
        paths = log_paths(found.submission, found.job, found.index)
        if not paths:
            raise UserError(f"logs: job {job_id} has printed nothing yet; allowed: a run whose job has begun")
        self._say_files(paths)
        return OK

    def _say_files(self, paths: Sequence[Path]) -> None:
        from mvar.commands.console import wide_console
        from mvar.commands.logged_rows import show_rows

        for path in paths:
            lines = path.read_text(errors="replace").splitlines()[-self.lines :]
            say(f"==> {path} <==")
            if path.name == layout.METRICS:
                left_out = show_rows(lines, wide_console())
                if left_out:
                    say(f"({left_out} left out; the file has everything)")
                continue
            for line in lines:
                say(line)

    @staticmethod
    def _say_state(directory: "Directory") -> None:
        status = directory.status() or {}
        told = [str(status[name]) for name in ("stage", "updated", "reason") if status.get(name)]
        say(", ".join((f"{directory.name}: {directory.state() or 'not begun'}", *told)))


def _directory(store: "Store", name: str) -> "Directory":
    """A run or shared stage of this machine."""
    stages = [stage for stage in store.stages() if stage.name.startswith(name)]
    if len(stages) == 1:
        return stages[0]
    return store.find_run(name)
