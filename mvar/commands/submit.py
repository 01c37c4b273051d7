"""`mvar submit`: the runs of sweeps on a cluster."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvar.commands.options import File, Settings
from mvar.commands.outcome import conclude
from mvar.commands.request import Sweeps
from mvar.errors import OK, UserError

if TYPE_CHECKING:
    from mvar.cluster.profiles import Profile
    from mvar.config import RunConfig


@dataclass(frozen=True)
class Submit(Sweeps):
    """Send the runs of sweeps that are not done yet to a cluster, and return: the very runs of `mvar run`.

    Shared stages are made first, by a job of their own. What is queued or running is not submitted again.

    Example: `mvar submit mixers --preset imagenet256-d16-online --seeds 3 --cluster node-of-eight`
    """

    cluster: File = ""
    """A .toml or .yaml file with the fields of slurm/template.toml, or a name: of a file in slurm/ (one-gpu,
    node-of-eight, several-nodes, preemptible, cpu), slurm, local (processes of this machine) or inprocess."""
    cluster_set: Settings = ()
    """FIELD=VALUE ...: fields that differ from the profile, e.g. partition=gpu timeout_min=120 env.NAME=value."""

    def execute(self, arguments: list[str]) -> int:
        """Submit them all; returns the exit code."""
        from mvar.runs.executors import contract as executors
        from mvar.runs.request import write_manifest

        profile = named_profile(self.cluster, self.cluster_set)
        executor = executors.find(profile.executor)
        executor.check_results(self.results)
        requests, configs, store = self.planned()
        if self.dry_run and not executor.is_queue:
            from mvar.commands.run_tables import print_plan

            print_plan(requests, store, profile.workers or None)
            return OK
        if not self.dry_run:
            for request in requests:
                write_manifest(store, request, arguments)
        sized: dict[str, tuple[Profile, list[RunConfig]]] = {}
        for config in configs:
            own = profile.for_run(config)
            sized.setdefault(own.model_dump_json(), (own, []))[1].append(config)
        wanted = list(sized.values()) or [(profile, configs)]
        summary = executors.ended(profile.executor, executor.execute(wanted, store, self.dry_run))
        return conclude(summary, store) if summary else OK


def named_profile(cluster: str, settings: tuple[tuple[str, ...], ...]) -> "Profile":
    """The profile that `--cluster` and `--cluster-set` ask for."""
    from mvar.cluster.profiles import load_profile, profile_names

    if not cluster:
        raise UserError(f"cluster: none given; allowed: {', '.join(profile_names())}, or a .toml or .yaml file")
    return load_profile(cluster, [setting for group in settings for setting in group])
