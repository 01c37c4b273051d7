"""`mvar submit`: the runs of sweeps on a cluster."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from mvar.commands.outcome import conclude
from mvar.commands.request import Sweeps
from mvar.errors import OK, UserError, say

if TYPE_CHECKING:
    from mvar.cluster.profiles import Profile
    from mvar.cluster.submit import Plan
    from mvar.config import RunConfig
    from mvar.runs.store import Store

Settings = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class Submit(Sweeps):
    """Send the runs of sweeps that are not done yet to a cluster, and return: the very runs of `mvar run`.

    Shared stages are made first, by a job of their own. What is queued or running is not submitted again.
    """

    cluster: str = ""
    """slurm, slurm-gpu, slurm-node (8 GPUs a run), local (processes of this machine), inprocess, or a .toml or .yaml
    file with the fields of mvar/cluster/profiles.py."""
    cluster_set: Settings = ()
    """FIELD=VALUE ...: fields that differ from the profile, e.g. partition=gpu timeout_min=120 env.NAME=value."""

    def execute(self, arguments: list[str]) -> int:
        """Submit them all; returns the exit code."""
        from mvar.runs.request import write_manifest

        profile = named_profile(self.cluster, self.cluster_set)
        if profile.executor == "slurm":
            from mvar.cluster.submit import check_place

            check_place(self.results)
        requests, configs, store = self.planned()
        if self.dry_run and profile.executor != "slurm":
            from mvar.commands.run_tables import print_plan

            print_plan(requests, store, profile.workers or None)
            return OK
        if not self.dry_run:
            for request in requests:
                write_manifest(store, request, arguments)
        if profile.executor == "slurm":
            return send([(profile, configs)], store, self.dry_run)
        return run_here(configs, store, profile)


def named_profile(cluster: str, settings: tuple[tuple[str, ...], ...]) -> "Profile":
    """The profile that `--cluster` and `--cluster-set` ask for."""
    from mvar.cluster.profiles import PROFILES, load_profile

    if not cluster:
        raise UserError(f"cluster: none given; allowed: {', '.join(PROFILES)}, or a .toml or .yaml file")
    return load_profile(cluster, [setting for group in settings for setting in group])


def send(requests: "Sequence[tuple[Profile, list[RunConfig]]]", store: "Store", dry_run: bool = False) -> int:
    """Submit what is missing of some runs to SLURM, by profile, and say what was sent; returns the exit code.

    Every request is checked before the first is submitted.
    """
    from mvar.cluster.submission import exclusive
    from mvar.cluster.submit import check, plan

    with nullcontext() if dry_run else exclusive(store):
        plans = [plan(configs, store, profile.runs_per_job, act=not dry_run) for profile, configs in requests]
        for (profile, _), found in zip(requests, plans, strict=True):
            if found.runs:
                check(found, profile)
        for number, (profile, configs) in enumerate(requests):
            # planned anew after the first: stages that were submitted just now are not submitted again
            found = plan(configs, store, profile.runs_per_job, act=not dry_run) if number else plans[0]
            _send(found, len(configs), store, profile, dry_run)
    return OK


def _send(found: "Plan", num_runs: int, store: "Store", profile: "Profile", dry_run: bool) -> None:
    from mvar.cluster.submission import describe
    from mvar.cluster.submit import submit

    count = sum(map(len, found.runs))
    say(f"{num_runs} runs: {found.num_done} done, {found.num_active} queued or running, {count} to submit")
    if not found.runs:
        return
    if dry_run:
        for tasks in found.stages:
            say("stages: " + ", ".join(task.name for task in tasks))
        for tasks in found.runs:
            say("run: " + ", ".join(dict.fromkeys(task.name for task in tasks)))
        say(f"would call sbatch {found.num_jobs} times; SLURM accepts the requests")
        return
    submission = submit(found, store, profile)
    for job in submission.jobs:
        say(f"{'stages' if job.is_stages else 'runs'}: job {describe(job)}")
    say(f"submission {submission.id}, code in {submission.code}")
    say(f"next: mvar status --results {shlex.quote(str(store.root))}")


def run_here(configs: "list[RunConfig]", store: "Store", profile: "Profile") -> int:
    """Make the runs on this machine; returns the exit code."""
    if profile.executor == "inprocess":
        from mvar.runs.inprocess import run_all

        summary = run_all(configs, store)
    else:
        from mvar.runs import runner

        summary = runner.run_all(configs, store, profile.workers or None)
    return conclude(summary, store)
