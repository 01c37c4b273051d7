"""`mvar logs`: what a run's job printed."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from mvar.errors import OK, UserError, existing_directory, say


@dataclass(frozen=True)
class Logs:
    """Show the end of the logs of a run's (or a shared stage's) latest job, and where they are."""

    run: tyro.conf.Positional[str]
    """Run id or stage, or a unique beginning of one."""
    lines: int = 40
    """Lines of each log; 0: all."""
    results: Path = Path("results")
    """Where runs are kept."""

    def execute(self, arguments: list[str]) -> int:
        """Print them; returns the exit code."""
        from mvar.cluster.find import find_submitted
        from mvar.cluster.submission import log_paths
        from mvar.runs.store import Store

        store = Store(existing_directory("results", self.results, "one that `mvar submit` has made"))
        (found,) = find_submitted(store, [self.run])
        job_id = found.job.element_id(found.index)
        paths = log_paths(found.submission, found.job, found.index)
        if not paths:
            raise UserError(f"logs: job {job_id} has printed nothing yet; allowed: a run whose job has begun")
        for path in paths:
            lines = path.read_text(errors="replace").splitlines()
            say(f"==> {path} <==")
            for line in lines[-self.lines :] if self.lines else lines:
                say(line)
        return OK
