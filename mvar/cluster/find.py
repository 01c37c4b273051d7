"""Submitted runs by name: for logs, to cancel, to submit again."""

from collections.abc import Sequence
from pathlib import Path

from mvar.cluster import scheduler
from mvar.cluster.profiles import Profile
from mvar.cluster.queue import PREEMPTED, UNDONE, Owner, Queue, View, read_queue
from mvar.cluster.submission import note_cancelled
from mvar.config import RunConfig
from mvar.errors import UserError
from mvar.runs.documents import Damaged
from mvar.runs.states import FAILED, INTERRUPTED, STOPPED
from mvar.runs.store import Store


def _by_name(queue: Queue) -> dict[str, list[Owner]]:
    """Owners by the name of a run or stage; of a run with several evaluations each, latest last."""
    names: dict[str, list[Owner]] = {}
    for key, owner in queue.owners.items():
        names.setdefault(key.partition("/")[0], []).append(owner)
    return {name: sorted(owners, key=lambda o: o.submission.id) for name, owners in names.items()}


def _match(name: str, names: Sequence[str]) -> str:
    matches = [n for n in names if n == name] or [n for n in names if n.startswith(name)]
    if len(matches) != 1:
        problem = f"fits {len(matches)} submitted runs" if matches else "was not submitted"
        allowed = ", ".join(matches or names) or "none, nothing was submitted yet"
        raise UserError(f"run: {name!r} {problem}; allowed: {allowed}")
    return matches[0]


def find_submitted(store: Store, name: str) -> Owner | None:
    """The latest submission of a run or stage; None where no such name was submitted.

    Raises:
        UserError: a beginning of several names.
    """
    owners = _by_name(read_queue(store, act=False))
    if not any(known.startswith(name) for known in owners):
        return None
    return owners[_match(name, sorted(owners))][-1]


def cancel(store: Store, names: Sequence[str]) -> dict[str, list[str]]:
    """Take runs from the queue, with no names everything; one squeue and one scancel.

    Returns:
        The cancelled jobs' ids, with the names of all that they make: a job of several runs is cancelled as a whole.

    Raises:
        UserError: a name that is not queued or running.
        SchedulerError: SLURM does not answer.
    """
    queue = read_queue(store)
    if queue.problem:
        raise scheduler.SchedulerError(queue.problem)
    active = {n: [o for o in owners if o.entry] for n, owners in _by_name(queue).items()}
    active = {n: owners for n, owners in active.items() if owners}
    wanted = [_match(name, sorted(active)) for name in names] if names else sorted(active)
    ended: dict[str, list[str]] = {}
    elements: dict[Path, set[tuple[str, int]]] = {}
    for name in wanted:
        for owner in active[name]:
            ended[owner.job_id] = owner.runs
            elements.setdefault(owner.submission.folder, set()).add((owner.job.name, owner.index))
    for folder, those in elements.items():
        note_cancelled(folder, those)
    scheduler.cancel(ended)
    return ended


def to_retry(
    store: Store, names: Sequence[str], lost: list[str], has_profile: bool = False
) -> list[tuple[Profile, list[RunConfig]]]:
    """What to submit again, with the profile that is stored with its last submission.

    Args:
        store: the results.
        names: runs that ended early; none: all that failed or were killed.
        lost: gets a line for what cannot be submitted again, because the files of its submission are damaged.
        has_profile: whether another profile is given: the stored one need not be known.

    Raises:
        UserError: a name that was never submitted.
        SchedulerError: SLURM does not answer: what looks dead may be queued.
    """
    view = View(store)
    if view.queue.problem:
        raise scheduler.SchedulerError(view.queue.problem)
    owners = {n: o for n, o in _by_name(view.queue).items() if "/" in next(iter(o[-1].job.elements[o[-1].index]))}
    wanted = {_match(name, sorted(owners)) for name in names}
    groups: dict[str, tuple[Profile, list[RunConfig]]] = {}
    for name, found in owners.items():
        seen = view(store.run(name))
        ended = (FAILED, STOPPED, INTERRUPTED) if name in wanted else (FAILED,)
        was_meant_to_go_on = (seen.state == STOPPED and PREEMPTED in seen.reason) or seen.reason == UNDONE
        if not (seen.state in ended or was_meant_to_go_on) or (names and name not in wanted):
            continue
        for owner in {(o.job.name, o.index): o for o in found}.values():
            if owner.submission.lost and not has_profile:
                lost.append(f"{name}: the profile is not known, {owner.submission.lost}; or give --cluster")
                continue
            try:
                works = owner.submission.works(owner.job.name, owner.index)
            except Damaged as damaged:
                lost.append(f"{name}: {damaged}")
                continue
            profile = owner.submission.profile
            configs = groups.setdefault(profile.model_dump_json(), (profile, []))[1]
            configs.extend(work.config for work in works if work.name == name)
    return list(groups.values())
