"""A submission on disk: which element of which job makes what. Any process may read it, days later.

    submissions/<id>/submission.json    profile, code, and for each job its name, id, and what its elements make
    submissions/<id>/<job>.jsonl        for each element one line: kinds of work and configs
    submissions/<id>/logs/              what the processes printed
    submissions/code/<id>/              the code as it was submitted, shared by equal ones

Everything but the jobs' ids is written before sbatch is called, with a claim of the process that calls it; who finds
a claim that has expired finishes or undoes the submission (mvar.cluster.claims).
"""

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mvar import layout
from mvar.cluster.profile_files import CONTROL
from mvar.cluster.profiles import Profile
from mvar.config import RunConfig, from_dict
from mvar.errors import UserError, in_field, warn, warn_once
from mvar.files import atomic_write, machine, process_began
from mvar.runs.documents import Damaged, read_document, remedy, write_document
from mvar.runs.store import Store

if TYPE_CHECKING:
    from mvar.runs.plan import Task  # imports torch, which `mvar status` does without

EXCLUSIVE_TIMEOUT_S = 300
CLAIM_LOOK_S = 1.0
CLAIM_S = 600  # for one sbatch and the files that belong to it
STAGES = "-stages"  # ending of such a job's name
START_MARK = "mvar: start"  # in a log before what each start of the job prints
PREEMPTED_MARK = "mvar: preempted"  # in a log where SLURM gave time to leave
JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # squeue takes a comma for the end of a name


@dataclass(frozen=True)
class Work:
    """One piece of work of one element: a shared stage or a run."""

    kind: str  # tokenizer, tokens, extractor, floors or run
    key: str  # see mvar.runs.plan.Task
    config: RunConfig

    @property
    def name(self) -> str:
        """The directory's name: of the run, or the stage's."""
        return self.key.partition("/")[0]


@dataclass(frozen=True)
class Job:
    """One call of sbatch: a job, or an array with one element each entry of `elements`."""

    name: str  # for SLURM, unique
    elements: tuple[tuple[str, ...], ...]  # keys of each element's works
    job_id: str | None = None  # None until sbatch has told it
    cancelled: frozenset[int] = frozenset()  # elements that `mvar cancel` ended
    undone: frozenset[int] = frozenset()  # elements that an interrupted submission did not send whole

    @property
    def is_stages(self) -> bool:
        """Whether it makes shared stages, not runs."""
        return self.name.endswith(STAGES)

    def element_id(self, index: int) -> str:
        """What SLURM calls an element: 12_3; a job that is no array: 12."""
        return f"{self.job_id}_{index}" if len(self.elements) > 1 else str(self.job_id)


@dataclass(frozen=True)
class Claim:
    """The process that is about to send a submission, and until when it may take."""

    host: str
    machine: str  # where its id means something, see mvar.files.machine
    pid: int
    began: str
    until: float  # seconds since 1970

    @classmethod
    def now(cls) -> "Claim":
        """This process's."""
        pid = os.getpid()
        return cls(socket.gethostname(), machine(), pid, process_began(pid) or "", time.time() + CLAIM_S)

    def holds(self) -> bool:
        """Whether another process may still be at it: not after its time, nor after its end on this machine."""
        if time.time() > self.until or (self.machine == machine() and self.pid == os.getpid()):
            return False
        return self.machine != machine() or process_began(self.pid) in (self.began, "")


@dataclass(frozen=True)
class Submission:
    """What one `mvar submit` sent."""

    folder: Path
    profile: Profile
    code: Path
    created: str
    jobs: tuple[Job, ...] = field(default=())
    claim: Claim | None = None  # while it is being sent
    lost: str = ""  # what is wrong with its description, of one that was put together from its other files

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def logs(self) -> Path:
        """Where the processes' output goes, and submitit's files."""
        return self.folder / layout.LOGS

    @property
    def is_private(self) -> bool:
        """Whether there are shell lines or variables, which may hold what only the user is to know."""
        return bool(self.profile.env or self.profile.setup)

    def write(self) -> None:
        """Store the description, atomically."""
        jobs = [
            {
                "name": j.name,
                "job_id": j.job_id,
                "elements": j.elements,
                "cancelled": sorted(j.cancelled),
                "undone": sorted(j.undone),
            }
            for j in self.jobs
        ]
        values = {"created": self.created, "profile": self.profile.model_dump(mode="json"), "code": str(self.code)}
        values |= {"claim": self.claim and asdict(self.claim), "jobs": jobs}
        write_document(self.folder / layout.SUBMISSION, values, 0o600 if self.is_private else 0o644)

    def works(self, job: str, index: int) -> list[Work]:
        """What one element makes, in order.

        Raises:
            Damaged: the file with what the job makes; names it.
        """
        path = self.folder / f"{job}.jsonl"
        try:
            return [
                Work(w["kind"], w["key"], from_dict(RunConfig, w["config"], lenient=True)) for w in _line(path, index)
            ]
        except (OSError, UserError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise Damaged(
                f"{path}: what element {index} makes cannot be read ({type(error).__name__}: {error}); `mvar submit` "
                "sends its runs again once the job has left the queue"
            ) from None


def new_id() -> str:
    """The moment, to the microsecond because the latest counts, and four random digits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"


def job_of(folder: Path, name: str, elements: "Sequence[Sequence[Task]]") -> Job:
    """Describe a job, and store what its elements make."""
    lines = (
        json.dumps([{"kind": t.kind, "key": t.key, "config": t.config.model_dump(mode="json")} for t in tasks])
        for tasks in elements
    )
    with atomic_write(folder / f"{name}.jsonl") as file:
        file.writelines((line + "\n").encode() for line in lines)
    return Job(name, tuple(tuple(task.key for task in tasks) for tasks in elements))


def read(folder: Path) -> Submission:
    """A submission by its folder; of a damaged description, which is said once, what its other files tell.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        return read_whole(folder)
    except Damaged as damaged:
        warn_once(str(damaged))
        return _recovered(folder, str(damaged))


def _recovered(folder: Path, why: str) -> Submission:
    """Jobs and their elements from the files with their works, ids from the batch scripts.

    Profile, cancelled and undone elements are not known. A job without such a file has no elements: what it makes is
    not known either.
    """
    ids = {}
    for script in folder.glob(f"{layout.LOGS}/*_submission.sh"):
        if found := re.search(r"^#SBATCH --job-name=(\S+)$", script.read_text(errors="replace"), re.M):
            ids[found[1]] = script.name.partition("_")[0]
    jobs = {path.stem: _elements(path) for path in folder.glob("*.jsonl") if JOB_NAME.fullmatch(path.stem)}
    for name in (f"mvar-{folder.name}{STAGES}", f"mvar-{folder.name}-runs-0"):
        jobs.setdefault(name, ())
    found = tuple(Job(name, elements, ids.get(name)) for name, elements in sorted(jobs.items(), reverse=True))
    return Submission(folder, Profile(), folder.parent / layout.CODE, "", found, lost=why)


def _elements(path: Path) -> tuple[tuple[str, ...], ...]:
    """Keys of what each element of a job makes; of a line that cannot be read none."""
    found: list[tuple[str, ...]] = []
    for index in range(path.read_bytes().count(b"\n")):
        keys: tuple[str, ...] = ()
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            keys = tuple(str(work["key"]) for work in _line(path, index))
        found.append(keys)
    return tuple(found)


def _line(path: Path, index: int) -> Any:
    """A line of a job's file, as JSON."""
    with path.open("rb") as lines:
        return json.loads(next(islice(lines, index, None), b""))


def read_whole(folder: Path) -> Submission:
    """A submission by its folder, as it was written.

    Raises:
        Damaged: its description is damaged or edited; names the file.
    """
    path = folder / layout.SUBMISSION
    values = read_document(path)
    try:
        jobs = tuple(map(_job, values["jobs"]))
        claim = values.get("claim")
        code, created = Path(values["code"]), str(values["created"])
        with in_field(str(path)):
            profile = from_dict(Profile, values["profile"])
        return Submission(folder, profile, code, created, jobs, claim and Claim(**claim))
    except Damaged:
        raise
    except UserError as error:
        raise Damaged(f"{error}; {remedy(path)}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{path}: damaged ({type(error).__name__}: {error}); {remedy(path)}") from None


def _job(values: dict[str, Any]) -> Job:
    name, elements = values["name"], tuple(map(tuple, values["elements"]))
    if not JOB_NAME.fullmatch(name):
        raise ValueError(f"name of a job {name!r}: allowed: letters, digits, '.', '_' and '-'")
    if not all(isinstance(key, str) for keys in elements for key in keys):
        raise ValueError(f"elements of job {name}: allowed: lists of keys")
    cancelled, undone = (frozenset(map(int, values.get(what, ()))) for what in ("cancelled", "undone"))
    return Job(name, elements, values["job_id"], cancelled, undone)


def submissions(store: Store) -> list[Submission]:
    """Every submission that this user may read, oldest first."""
    found, hidden = [], 0
    for path in sorted(store.root.absolute().glob(f"{layout.SUBMISSIONS}/*/{layout.SUBMISSION}")):
        try:
            found.append(read(path.parent))
        except PermissionError:  # another user's, with variables of its own
            hidden += 1
    if hidden:
        warn(f"{hidden} submissions of other users in {store.root} may not be read; their runs' queue is not known")
    return found


def note_cancelled(folder: Path, ended: Iterable[tuple[str, int]]) -> None:
    """Note elements (job's name, index) as cancelled: jobs that are requeued at this moment see it and leave."""
    ended = set(ended)
    change(folder, lambda job: replace(job, cancelled=job.cancelled | {i for name, i in ended if name == job.name}))


def note_job_id(folder: Path, name: str, job_id: str) -> Submission:
    """Note what SLURM calls a job, and that there is more to send; returns the submission as it is now."""
    return change(folder, lambda job: replace(job, job_id=job_id) if job.name == name else job, Claim.now())


def note_sent(folder: Path, undone: bool = False) -> Submission:
    """Note that a submission is as it shall be: all sent, or nothing of it."""
    everything = (lambda job: replace(job, undone=frozenset(range(len(job.elements))))) if undone else lambda job: job
    return change(folder, everything, None)


def change(folder: Path, changed: Callable[[Job], Job], *claim: Claim | None) -> Submission:
    """Store a submission with its jobs, and its claim where one is given, replaced; returns it."""
    with FileLock(folder / layout.LOCK):
        found = read(folder)
        found = replace(found, jobs=tuple(map(changed, found.jobs)), claim=claim[0] if claim else found.claim)
        if not found.lost:  # else what is not known would be written as if it were
            found.write()
    return found


def _lock(store: Store) -> FileLock:
    """One object a path: whoever holds it in this process may take it again."""
    folder = store.root.absolute() / layout.SUBMISSIONS
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / layout.LOCK, is_singleton=True)


@contextmanager
def exclusive_now(store: Store) -> Iterator[bool]:
    """Whether nobody is submitting at this moment, nor can begin to within the block."""
    try:
        lock = _lock(store)
        lock.acquire(timeout=0)
    except (Timeout, OSError):  # OSError: another user's results, where nothing may be locked
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def exclusive(store: Store) -> Iterator[None]:
    """One at a time: two that look at the queue and then submit would submit everything twice.

    On another machine, where locks may not reach, one is known by its claim.
    """
    deadline = time.monotonic() + EXCLUSIVE_TIMEOUT_S
    try:
        with _lock(store).acquire(timeout=EXCLUSIVE_TIMEOUT_S):
            while any(found.claim and found.claim.holds() for found in submissions(store)):
                if time.monotonic() > deadline:
                    raise Timeout("claim")
                time.sleep(CLAIM_LOOK_S)
            yield
    except Timeout:
        raise UserError(
            f"submit: another `mvar submit` or `mvar retry` has been at work on {store.root} for "
            f"{EXCLUSIVE_TIMEOUT_S} s; allowed: one at a time"
        ) from None


def is_cancelled(folder: Path, job: str, index: int) -> bool:
    """Whether `mvar cancel` ended an element."""
    return any(index in j.cancelled for j in read(folder).jobs if j.name == job)


def log_paths(submission: Submission, job: Job, index: int) -> list[Path]:
    """The existing logs of an element: of each process its output and its errors; SLURM's own words are in the first
    process's errors."""
    if job.job_id is None:
        return []
    return sorted(submission.logs.glob(f"{job.element_id(index)}_*_log.*"))


def describe(job: Job) -> str:
    """A job for people: its id and how many elements it has."""
    return f"{job.job_id} ({len(job.elements)} elements)" if len(job.elements) > 1 else str(job.job_id)


def check_place(path: Path) -> None:
    """Refuse results below a folder whose name SLURM would not take as it is.

    Raises:
        UserError: names the path and the character.
    """
    if found := re.search(rf"[%\\'\"]|{CONTROL.pattern}", str(path.absolute())):
        raise UserError(
            f"results: {str(path)!r} has {found[0]!r}, which SLURM reads in its own way in the names of logs; allowed "
            "with SLURM: folders without % \\ ' \" and control characters"
        )
