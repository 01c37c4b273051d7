"""`mvar status`: what is done, running, queued, stopped, failed, missing."""

from dataclasses import dataclass
from pathlib import Path

from mvar import layout
from mvar.errors import FAILURE, OK, existing_directory, warn, warn_once


@dataclass(frozen=True)
class Status:
    """Show every run that was begun, asked for or submitted: done, running, queued, stopped, failed, missing.

    From the results directory, and one squeue where runs were submitted to SLURM.
    """

    results: Path = Path("results")
    """Where runs are kept."""

    def execute(self, arguments: list[str]) -> int:
        """Print the table; returns the exit code: 1 where what was asked for or submitted cannot be told."""
        from mvar.cluster.queue import View
        from mvar.commands.run_tables import print_status
        from mvar.runs.repair import damaged_documents
        from mvar.runs.store import Store

        store = Store(existing_directory("results", self.results, "one that `mvar run` has made"))
        view = View(store)
        print_status(store, view.names(), view)
        if view.queue.problem:
            warn(f"{view.queue.problem}; states of submitted runs are as their directories say")
        for damaged in damaged_documents(store):
            warn_once(str(damaged))
        lacking = view.queue.num_lost or len(store.manifests()) < len(list(store.root.glob(f"{layout.SWEEPS}/*.json")))
        return FAILURE if lacking else OK
