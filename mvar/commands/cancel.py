"""`mvar cancel`: take runs from the queue."""

from dataclasses import dataclass

from mvar.commands.options import InResults, RunNames
from mvar.errors import OK, UserError, existing_directory, say


@dataclass(frozen=True)
class Cancel(InResults):
    """Take runs from SLURM's queue; what is running saves a checkpoint first. `mvar submit` or `retry` goes on.

    Example: `mvar cancel --all`
    """

    runs: RunNames = ()
    """Run ids, or unique beginnings."""
    all: bool = False
    """Everything of this results directory that is queued or running, shared stages too."""

    def execute(self, arguments: list[str]) -> int:
        """Cancel them; returns the exit code."""
        from mvar.cluster.find import cancel
        from mvar.runs.store import Store

        if bool(self.runs) == self.all:
            raise UserError(f"cancel: {len(self.runs)} runs and all={self.all}; allowed: runs, or --all")
        store = Store(existing_directory("results", self.results, "one that `mvar submit` has made"))
        for job_id, names in cancel(store, self.runs).items():
            say(f"cancelled job {job_id}: {', '.join(names)}")
        return OK
