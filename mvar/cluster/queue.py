"""What has become of every run: its directory, the submissions that ask for it, and at most one squeue."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mvar.cluster import scheduler
from mvar.cluster.claims import settle
from mvar.cluster.scheduler import Entry, SchedulerError
from mvar.cluster.submission import PREEMPTED_MARK, START_MARK, Job, Submission, log_paths, submissions
from mvar.runs.documents import Foreign
from mvar.runs.states import DONE, FAILED, INTERRUPTED, MISSING, QUEUED, RUNNING, STOPPED, Seen
from mvar.runs.store import Directory, Store

TAIL_BYTES = 65536
SHOWN = 400  # characters of the line that says why: a path may be long
PREEMPTED = "preempted"
KILLED = ("out of memory", "a process of it was killed")
CANCELLED = "cancelled"
UNKNOWN = "unknown"  # the state of what another version has made
UNDONE = "its submission was interrupted; `mvar submit` or `mvar retry` sends it"
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "SUSPENDED", "PREEMPTED")
HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")  # for ever, unless somebody releases them
START = re.compile(rf"^{START_MARK}")
TAKEN = re.compile(rf"DUE TO PREEMPTION|^{PREEMPTED_MARK}", re.I)
BEGINNING = re.compile(rf"^{START_MARK}|DUE TO JOB REQUEUE")  # what stands before it is of an earlier start
# What SLURM writes into a job's errors when it ends one, and what that means; the most telling first.
CAUSES = (
    (re.compile(r"oom.?kill|exceeded memory limit|Out Of Memory|OUT_OF_MEMORY", re.I), KILLED[0]),
    (re.compile(r"No space left on device|Disk quota exceeded"), "the disk is full"),
    (re.compile(r"Read-only file system"), "the file system is read-only"),
    (re.compile(r"Stale (NFS )?file handle|Transport endpoint|Remote I/O error"), "the file system is gone"),
    (re.compile(r"Errno 5\]|Input/output error"), "the file system does not work"),
    (re.compile(r"DUE TO TIME LIMIT", re.I), "time limit, before the warning signal could be heeded"),
    (re.compile(r"DUE TO NODE FAILURE", re.I), "its node failed"),
    (TAKEN, PREEMPTED),
    (re.compile(r"JOB .*CANCELLED AT", re.I), CANCELLED),  # of a step alone: srun ends what is left of it
    (re.compile(r"task.*: Killed|signal 9|Segmentation|Bus error|Aborted", re.I), KILLED[1]),
    (re.compile(r"CANCELLED AT", re.I), CANCELLED),
    (re.compile(r"ModuleNotFoundError|ImportError", re.I), "Python could not start"),
)


@dataclass(frozen=True)
class Owner:
    """The latest submission of a key, and its line of squeue while it is queued or running."""

    submission: Submission
    job: Job
    index: int
    entry: Entry | None

    @property
    def job_id(self) -> str:
        """What SLURM calls the element."""
        return self.entry.job_id if self.entry else self.job.element_id(self.index)

    @property
    def runs(self) -> list[str]:
        """Names of the runs, or shared stages, that the element makes, in order."""
        return list(dict.fromkeys(key.partition("/")[0] for key in self.job.elements[self.index]))


@dataclass(frozen=True)
class Queue:
    """All submissions beside what squeue says of them."""

    owners: dict[str, Owner] = field(default_factory=dict)  # by key of the work
    problem: str = ""  # why squeue could not be asked
    num_lost: int = 0  # submissions whose description is damaged
    unknown: tuple[str, ...] = ()  # jobs in the queue of which it is not known what they make


def read_queue(store: Store, act: bool = True) -> Queue:
    """Whose work is whose, and what is in the queue: one squeue where there are submissions.

    An active element of an older submission goes before an ended one of a newer. Submissions that were interrupted
    are finished or undone; with `act=False` they are only seen as if they were.
    """
    problem, entries, found = "", [], submissions(store)
    try:
        entries = scheduler.queued(job.name for submission in found for job in submission.jobs)
        found = settle(store, found, entries, act)
    except SchedulerError as error:
        problem = str(error)
    lost = {job.name: job for submission in found if submission.lost for job in submission.jobs}
    unknown = [e.job_id for e in entries if e.name in lost and not any(lost[e.name].elements[e.index : e.index + 1])]
    by_name: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, {})[entry.index] = entry
    owners: dict[str, Owner] = {}
    for submission in found:
        for job in submission.jobs:
            for index, keys in enumerate(job.elements):
                entry = None if index in job.undone else by_name.get(job.name, {}).get(index)
                for key in keys:
                    if entry or key not in owners or not (owners[key].entry or index in job.undone):
                        owners[key] = Owner(submission, job, index, entry)
    return Queue(owners, problem, sum(bool(s.lost) for s in found), tuple(unknown))


def active_elements(store: Store, act: bool = True) -> dict[str, str]:
    """Keys of what is queued or running, with the ids of the elements that make them.

    Raises:
        SchedulerError: squeue failed, or the files of a queued job are damaged: what is queued is then not known.
    """
    queue = read_queue(store, act)
    if queue.problem:
        raise SchedulerError(queue.problem)
    if queue.unknown:  # what is submitted now might be submitted twice
        raise SchedulerError(
            f"submission: what {', '.join(queue.unknown)} in the queue makes cannot be read, see the warning; allowed: "
            "to wait until it has left the queue, or scancel"
        )
    return {key: owner.job_id for key, owner in queue.owners.items() if owner.entry}


class View:
    """States of runs and stages as `mvar status` shows them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.queue = read_queue(store)
        self._runs: dict[str, Owner] = {}
        for key, owner in self.queue.owners.items():
            name = key.partition("/")[0]
            if name not in self._runs or owner.entry or not self._runs[name].entry:
                self._runs[name] = owner

    def owner(self, name: str) -> Owner | None:
        """The latest submission of a run or stage."""
        return self._runs.get(name)

    def names(self) -> list[str]:
        """Every run that was begun, asked for or submitted."""
        cells = [cell for manifest in self._store.manifests() for cell in manifest["cells"]]
        asked = {run_id for cell in cells for run_id in cell["run_ids"]}
        keys = {run_id: key for cell in cells for run_id, key in cell.get("keys", {}).items()}
        submitted = {key.partition("/")[0] for key in self.queue.owners if "/" in key}
        there = {run.name for run in self._store.runs()}
        index = self._store.index if asked - there else None
        renamed = {name for name in asked - there if index and (index.by_id(name) or index.runs(keys.get(name, "")))}
        return sorted((asked - renamed) | submitted | there)

    def __call__(self, directory: Directory) -> Seen:
        """What has become of one directory."""
        try:
            status, owner = directory.status(), self.owner(directory.name)
        except Foreign as foreign:
            return Seen(UNKNOWN, None, str(foreign))
        if owner and owner.entry:
            if len(owner.runs) > 1 and owner.entry.state in ("RUNNING", "COMPLETING"):
                return _in_packed_job(status, owner)
            return _preempted(_in_queue(status, owner.entry), owner)
        if status is None:
            return self._never_begun(owner, directory.name) if owner else Seen(MISSING)
        state, job = status["state"], status.get("job")
        if state == RUNNING:
            return self._said_running(directory, status, owner)
        if state == STOPPED and owner and owner.index in owner.job.cancelled:
            return Seen(STOPPED, status, "cancelled", owner.job_id)
        if state == STOPPED and job and owner and not self.queue.problem:
            cause = self._cause(owner, job)
            reason = f"{status.get('reason')}; job {job} left the queue: {cause}"
            return Seen(_without_job(cause), status, reason, job)
        reason = status.get("reason") or ""
        if state == FAILED and job and (cause := self._cause(owner, job)).startswith((*KILLED, PREEMPTED)):
            reason += f"; {cause}"  # the first process saw only that another one was gone
            state = _without_job(cause)
        return Seen(state, status, reason, job or "")

    def _said_running(self, directory: Directory, status: dict[str, Any], owner: Owner | None) -> Seen:
        """What its status says is running, and what the queue knows nothing of."""
        job = status.get("job")
        if directory.is_locked():
            return Seen(RUNNING, status, job=job or "")
        if not job:
            return Seen(INTERRUPTED, status, status.get("reason") or "")
        if self.queue.problem:
            return Seen(RUNNING, status, "as its directory says; squeue could not be asked", job)
        cause = self._cause(owner, job)
        return Seen(_without_job(cause), status, f"job {job} is no longer in the queue: {cause}", job)

    def _never_begun(self, owner: Owner, name: str) -> Seen:
        job = owner.job_id if owner.job.job_id else ""
        if owner.index in owner.job.cancelled:
            return Seen(STOPPED, None, "cancelled", job)
        if owner.index in owner.job.undone:
            return Seen(MISSING, None, UNDONE)
        if self.queue.problem:
            return Seen(MISSING, None, "squeue could not be asked", job)
        if not owner.job.job_id and owner.submission.lost:
            return Seen(MISSING, None, "its submission.json is damaged")
        if not owner.job.job_id:
            return Seen(MISSING, None, "its submission was interrupted before sbatch")
        why = self._why_not_begun(owner, name)
        return Seen(FAILED, None, f"job {job} left the queue before it began: {why}", job)

    def _why_not_begun(self, owner: Owner, name: str) -> str:
        """The stage that was to be made first and is not done; where it never began either, what kept it, and so on.

        Step by step, and each stage once: submissions may wait for each other's stages.
        """
        met, link = {name}, ""
        while stage := self._stage_before(owner, name, met):
            met.add(stage)
            kind, _, stage_id = stage.partition("-")
            directory, other = self._store.stage(kind, stage_id), self.owner(stage)
            if directory.status() is not None or other is None or other.entry or not _left_queue(other):
                seen = self(directory)  # has an answer of its own
                return f"{stage} {seen.state}" + (f" ({seen.reason})" if seen.reason else "")
            owner, name, link = other, stage, f"{stage} never began; its job {other.job_id}: "
        return link + self._cause(owner, owner.job_id)

    def _stage_before(self, owner: Owner, name: str, met: set[str]) -> str | None:
        """The first stage, not done and not met yet, that a run's submission makes, or a stage's job before it."""
        if owner.job.is_stages:
            own = owner.job.elements[owner.index]
            keys = list(own[: own.index(name)]) if name in own else []
        else:
            keys = [k for job in owner.submission.jobs if job.is_stages for keys in job.elements for k in keys]
        for key in keys:
            kind, _, stage_id = key.partition("-")
            if kind != "floors" and key not in met and self._store.stage(kind, stage_id).state() != DONE:
                return key
        return None

    def _cause(self, owner: Owner | None, job: str) -> str:
        if owner is None or not owner.job_id.startswith(job.partition("_")[0]):
            return "no log"
        return cause_of_death(log_paths(owner.submission, owner.job, owner.index))


def _without_job(cause: str) -> str:
    """The state of a run that is not done and whose job has ended: a scancel was meant, a preemption no failure."""
    return STOPPED if cause.startswith((CANCELLED, PREEMPTED)) else FAILED


def _left_queue(owner: Owner) -> bool:
    """Whether SLURM had the element, and neither `mvar cancel` nor an interruption took it back."""
    return bool(owner.job.job_id) and owner.index not in owner.job.cancelled | owner.job.undone


def _preempted(seen: Seen, owner: Owner) -> Seen:
    """A run whose job SLURM has taken the nodes from, as what it is: no failure, and not new in the queue."""
    entry = owner.entry
    assert entry
    ending = entry.state == "COMPLETING" and seen.state != DONE
    if seen.status is None or not (ending or seen.state == QUEUED):
        return seen
    lines = _last_lines(log_paths(owner.submission, owner.job, owner.index), START)
    if not any(TAKEN.search(line) for line in lines):
        return seen
    if ending:
        return replace(seen, state=STOPPED, reason=f"{PREEMPTED}, its job is ending or about to be queued again")
    return replace(seen, reason=f"{PREEMPTED}, queued again" + (f" ({seen.reason})" if seen.reason else ""))


def _in_queue(status: dict[str, Any] | None, entry: Entry) -> Seen:
    if entry.state == "COMPLETING" and status and status["state"] in (DONE, FAILED):
        return Seen(status["state"], status, status.get("reason") or "", entry.job_id)
    if entry.state == "COMPLETING" and status and status["state"] == STOPPED:
        return Seen(STOPPED, status, "its job is ending: cancelled, or about to be queued again", entry.job_id)
    if entry.state in (*WAITING, *HELD):
        if status and status["state"] == DONE and not entry.reason.startswith("Dependency"):
            return Seen(DONE, status, "", entry.job_id)
        reason = entry.reason if entry.state == "PENDING" else entry.state
        if entry.state in HELD or "held" in entry.reason.lower():
            reason = f"held ({entry.reason}); to let it go: scontrol release {entry.job_id}"
        return Seen(QUEUED, status, reason, entry.job_id)
    return Seen(RUNNING, status, _limit(entry), entry.job_id, entry.node)


def _limit(entry: Entry) -> str:
    """How long until the job's time limit, where there is one."""
    return f"time limit in {entry.time_left}" if any(map(str.isdigit, entry.time_left)) else ""


def _in_packed_job(status: dict[str, Any] | None, owner: Owner) -> Seen:
    """One of several runs that a job at work makes one after the other."""
    entry = owner.entry
    assert entry
    if status and (status["state"] == DONE or status.get("job") == entry.job_id):
        if status["state"] in (DONE, FAILED):
            return Seen(status["state"], status, status.get("reason") or "", entry.job_id)
        return _in_queue(status, entry)
    return Seen(QUEUED, status, "other runs of its job go first", entry.job_id)


def cause_of_death(logs: Iterable[Path]) -> str:
    """Why a job ended, with the line that says so, from what SLURM wrote since it last began.

    Several lines may fit: an out-of-memory kill also says that a process was killed. The most telling one counts.
    """
    lines = _last_lines(logs, BEGINNING)
    for pattern, meaning in CAUSES:
        for line in reversed(lines):
            if pattern.search(line):
                return f"{meaning} ({' '.join(line.split())[:SHOWN]})"
    return "cause unknown, see `mvar logs`"


def _last_lines(logs: Iterable[Path], beginning: re.Pattern[str]) -> list[str]:
    """The lines of errors that stand after the last one that begins them; of long logs only their ends are read."""
    lines: list[str] = []
    for path in logs:
        if path.suffix == ".err":
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                found = file.read().decode(errors="replace").splitlines()
            begin = max((i + 1 for i, line in enumerate(found) if beginning.search(line)), default=0)
            lines += found[begin:]
    return lines
