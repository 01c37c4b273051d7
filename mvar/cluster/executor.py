"""The executor `slurm`: runs are sent to SLURM's queue, shared stages first, and made there."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from mvar.config import RunConfig
from mvar.errors import counted, say
from mvar.runs.executors.contract import Executor
from mvar.runs.store import Store

if TYPE_CHECKING:
    from mvar.cluster.profiles import Profile
    from mvar.cluster.submit import Plan


class Slurm(Executor["Profile"]):
    """Sends what is missing and neither queued nor running; profiles find this class, so it loads the rest late."""

    is_queue = True

    def uses(self, field: str) -> bool:
        """All but the number of processes of this machine."""
        return field != "workers"

    def check_results(self, results: Path) -> None:
        """Refuse names that SLURM would not take as they are."""
        from mvar.cluster.submission import check_place

        check_place(results)

    def execute(
        self, requests: "Sequence[tuple[Profile, Sequence[RunConfig]]]", store: Store, dry_run: bool = False
    ) -> None:
        """Submit, and say what was sent. Every request is checked before the first is submitted."""
        from mvar.cluster import scheduler
        from mvar.cluster.submission import exclusive
        from mvar.cluster.submit import check, plan

        how = {"act": not dry_run, "ask": not dry_run or scheduler.is_here()}
        with nullcontext() if dry_run else exclusive(store):
            plans = [plan(configs, store, profile.runs_per_job, **how) for profile, configs in requests]
            for (profile, _), found in zip(requests, plans, strict=True):
                if found.runs and how["ask"]:
                    check(found, profile)
            for number, (profile, configs) in enumerate(requests):
                # planned anew after the first: stages that were submitted just now are not submitted again
                found = plan(configs, store, profile.runs_per_job, **how) if number else plans[0]
                if dry_run:
                    _show(found, len(configs), store, profile, how["ask"])
                else:
                    _send(found, len(configs), store, profile)


def _say_counts(found: "Plan", num_runs: int) -> int:
    """How many runs are to be submitted, and what is with the others."""
    count = sum(map(len, found.runs))
    say(f"{counted(num_runs, 'run')}: {found.num_done} done, {found.num_active} queued or running, {count} to submit")
    return count


def _show(found: "Plan", num_runs: int, store: Store, profile: "Profile", is_asked: bool) -> None:
    """What would be sent, the scripts, and whether SLURM, where it is there to be asked, would take them."""
    from mvar.cluster.scripts import scripts

    if not _say_counts(found, num_runs):
        return
    for tasks in found.stages:
        say("stages: " + ", ".join(task.name for task in tasks))
    for tasks in found.runs:
        say("run: " + ", ".join(dict.fromkeys(task.name for task in tasks)))
    for title, text in scripts(found, store, profile):
        say(f"==> {title} <==")
        for line in text.splitlines():
            say(line)
    told = "SLURM accepts the requests" if is_asked else "SLURM is not here: whether it would, is not known"
    say(f"would call sbatch {found.num_jobs} times; {told}")


def _send(found: "Plan", num_runs: int, store: Store, profile: "Profile") -> None:
    from mvar.cluster.submission import describe
    from mvar.cluster.submit import submit

    if not _say_counts(found, num_runs):
        return
    submission = submit(found, store, profile)
    for job in submission.jobs:
        say(f"{'stages' if job.is_stages else 'runs'}: job {describe(job)}")
    say(f"submission {submission.id}, code in {submission.code}")
    say(f"next: mvar status --results {shlex.quote(str(store.root))}")
