"""`mvar retry`: submit again what failed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvar.commands.options import File, InResults, RunNames, Settings
from mvar.commands.plugged import Plugged
from mvar.commands.submit import named_profile
from mvar.errors import FAILURE, OK, UserError, complain, existing_directory

if TYPE_CHECKING:
    from mvar.cluster.profiles import Profile
    from mvar.config import RunConfig


@dataclass(frozen=True)
class Retry(Plugged, InResults):
    """Submit runs again that failed, were killed or left the queue; they go on from their last checkpoint.

    With the profile that they had, but for its shell lines and variables: those are read again from where it came.

    Example: `mvar retry --failed --cluster-set mem_gb=64`
    """

    runs: RunNames = ()
    """Run ids, or unique beginnings; also of cancelled ones."""
    failed: bool = False
    """All failed runs."""
    cluster: File = ""
    """Another profile than the last time, see `mvar submit`."""
    cluster_set: Settings = ()
    """FIELD=VALUE ...: fields that differ, e.g. mem_gb=64."""
    dry_run: bool = False
    """Only print what would be submitted."""

    def execute(self, arguments: list[str]) -> int:
        """Submit them; returns the exit code."""
        from mvar.cluster.find import to_retry
        from mvar.cluster.profiles import with_own_shell, with_settings
        from mvar.runs.executors import contract as executors
        from mvar.runs.store import Store

        if bool(self.runs) == self.failed:
            raise UserError(f"retry: {len(self.runs)} runs and failed={self.failed}; allowed: runs, or --failed")
        store = Store(existing_directory("results", self.results, "one that `mvar submit` has made"))
        lost: list[str] = []
        groups = to_retry(store, self.runs, lost, bool(self.cluster))
        code = FAILURE if lost else OK
        for line in lost:
            complain(line, FAILURE)
        if not groups:
            print("nothing else failed" if lost else "nothing failed")
            return code
        if self.cluster:
            profile = named_profile(self.cluster, self.cluster_set)
            changed = [(profile, [config for _, configs in groups for config in configs])]
        else:
            settings = [setting for group in self.cluster_set for setting in group]
            changed = [(with_settings(with_own_shell(profile), settings), configs) for profile, configs in groups]
        by_executor: dict[str, list[tuple[Profile, list[RunConfig]]]] = {}
        for profile, configs in changed:
            if not executors.find(profile.executor).is_queue:
                name = self.cluster or profile.source or profile.executor
                raise UserError(f"cluster: {name} is no SLURM profile; allowed there: `mvar run` goes on itself")
            by_executor.setdefault(profile.executor, []).append((profile, configs))
        for name, requests in by_executor.items():
            executors.find(name).execute(requests, store, self.dry_run)
        return code
