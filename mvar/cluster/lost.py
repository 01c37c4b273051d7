"""Submissions whose description is damaged, for `mvar repair`."""

from mvar import layout
from mvar.cluster import scheduler
from mvar.cluster.scheduler import SchedulerError
from mvar.cluster.submission import submissions
from mvar.runs.repair import Finding
from mvar.runs.store import Store


def lost_submissions(store: Store) -> list[Finding]:
    """Damaged ones. They can be set aside once SLURM says that their jobs have left the queue: until then what is left
    of them keeps their runs from being submitted twice."""
    found = []
    for submission in submissions(store):
        if not submission.lost:
            continue
        path = submission.folder / layout.SUBMISSION
        try:
            entries = scheduler.queued(job.name for job in submission.jobs)
            waiting = ", ".join(entry.job_id for entry in entries)
            action = f"is left: {waiting} is in the queue; again once it has left it, or scancel" if waiting else ""
        except SchedulerError as error:
            action = f"is left: whether its jobs are in the queue is not known ({error}); again where SLURM is"
        mend = None if action else lambda path=path: path.rename(path.with_name(layout.SUBMISSION_ASIDE))
        told = (
            action
            or f"is set aside as {layout.SUBMISSION_ASIDE}; its profile is lost, `mvar submit` sends what is not done"
        )
        found.append(Finding(path, submission.lost, told, mend))
    return found
