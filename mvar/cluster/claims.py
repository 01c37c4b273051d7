"""Submissions that a killed `mvar submit` has left half sent: finished or undone by whoever looks at the queue next.

A job is whole once SLURM has it and every element has its pickle; it is kept, and its id noted. Of what is not whole
nothing ever worked: it is cancelled, forgotten, and sent anew by the next `mvar submit` or `mvar retry`.
"""

from collections.abc import Sequence
from dataclasses import replace

from mvar.cluster import scheduler
from mvar.cluster.scheduler import Entry
from mvar.cluster.submission import Job, Submission, change, exclusive_now, read
from mvar.errors import warn
from mvar.runs.store import Store


def settle(store: Store, found: Sequence[Submission], entries: Sequence[Entry], act: bool = True) -> list[Submission]:
    """The submissions, with those settled whose claims have expired.

    Args:
        store: the results.
        found: all submissions.
        entries: the lines of squeue of their jobs.
        act: cancel and write; else only say how it would be (`--dry-run`).

    Raises:
        SchedulerError: scancel failed.
    """
    if not any(_is_stale(submission, entries) for submission in found):
        return list(found)
    with exclusive_now(store) as alone:
        if not alone:  # somebody is submitting: settles it, or is the one
            return list(found)
        return [_settled(s, entries, act) if _is_stale(s, entries) else s for s in found]


def _is_stale(submission: Submission, entries: Sequence[Entry]) -> bool:
    if submission.claim:
        return not submission.claim.holds()
    return any(_orphans(job, entries) for job in submission.jobs if job.undone)


def _orphans(job: Job, entries: Sequence[Entry]) -> list[str]:
    """Elements in the queue that were undone: an sbatch that outlives its `mvar submit` sends them afterwards."""
    return [e.job_id for e in entries if e.name == job.name and e.index in job.undone and e.state != "COMPLETING"]


def _settled(submission: Submission, entries: Sequence[Entry], act: bool) -> Submission:
    if act:
        submission = read(submission.folder)  # finished, perhaps, while this process waited for the lock
    if not _is_stale(submission, entries):
        return submission
    jobs = {job.name: _judged(submission, job, entries) for job in submission.jobs}
    orphans = [job_id for job in jobs.values() for job_id in _orphans(job, entries)]
    if not act:
        return replace(submission, jobs=tuple(jobs.values()), claim=None)
    scheduler.cancel(orphans)
    try:
        changed = change(submission.folder, lambda job: jobs[job.name], None)
    except PermissionError:  # another user's
        return submission
    kept = sum(len(job.elements) - len(job.undone) for job in jobs.values())
    total = sum(len(job.elements) for job in jobs.values())
    warn(
        f"submission {submission.id} was interrupted: {kept} of {total} elements are sent and kept, {len(orphans)} "
        "were in the queue without their files and are cancelled; the others are sent by the next `mvar submit`"
    )
    return changed


def _judged(submission: Submission, job: Job, entries: Sequence[Entry]) -> Job:
    """A job with its id, and its elements that are not whole as undone."""
    queued = (e.job_id.partition("_")[0] for e in entries if e.name == job.name)
    job = replace(job, job_id=job.job_id or next(queued, None))
    indices = range(len(job.elements))
    whole = {i for i in indices if job.job_id and _pickle_exists(submission, job, i)}
    return replace(job, undone=job.undone | (set(indices) - whole))


def _pickle_exists(submission: Submission, job: Job, index: int) -> bool:
    return (submission.logs / f"{job.element_id(index)}_submitted.pkl").is_file()  # submitit's name for it
