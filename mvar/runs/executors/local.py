"""Worker processes of this machine: `mvar run`, and `mvar submit --cluster local`."""

from collections.abc import Sequence
from dataclasses import dataclass

from mvar.config import RunConfig
from mvar.runs.executors.contract import Executor, Settings, Summary
from mvar.runs.store import Store


@dataclass(frozen=True)
class Workers:
    """The settings of `mvar run`, which has no profile."""

    workers: int = 0


class Local(Executor[Settings]):
    """Shared stages first, then runs, longest first, in a bounded number of processes; GPUs are shared out."""

    def uses(self, field: str) -> bool:
        """The number of processes."""
        return field == "workers"

    def execute(
        self, requests: Sequence[tuple[Settings, Sequence[RunConfig]]], store: Store, dry_run: bool = False
    ) -> Summary:
        """Make them; returns how they ended."""
        from mvar.runs import runner  # and torch, which a profile is read without

        ((settings, configs),) = requests
        return runner.run_all(configs, store, settings.workers or None)
