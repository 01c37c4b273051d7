"""A submission on disk: which element of which job makes what. Any process may read it, days later.

    submissions/<id>/submission.json    profile, code, and for each job its name, id, and what its elements make
    submissions/<id>/<job>.jsonl        for each element one line: kinds of work and configs
    submissions/<id>/logs/              what the processes printed
    submissions/code/<id>/              the code as it was submitted, shared by equal ones

Everything but the jobs' ids is written before sbatch is called.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from experiments.documents import read_document, write_document
from experiments.store import Store
from mvar.config import RunConfig, from_dict
from mvar.errors import UserError
from mvar.files import atomic_write
from slurm.profiles import Profile

if TYPE_CHECKING:
    from experiments.plan import Task  # imports torch, which `mvar status` does without

EXCLUSIVE_TIMEOUT_S = 300
STAGES = "-stages"  # ending of such a job's name
START_MARK = "mvar: start"  # in a log before what each start of the job prints


@dataclass(frozen=True)
class Work:
    """One piece of work of one element: a shared stage or a run."""

    kind: str  # tokenizer, tokens, extractor, floors or run
    key: str  # see experiments.plan.Task
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

    @property
    def is_stages(self) -> bool:
        """Whether it makes shared stages, not runs."""
        return self.name.endswith(STAGES)

    def element_id(self, index: int) -> str:
        """What SLURM calls an element: 12_3; a job that is no array: 12."""
        return f"{self.job_id}_{index}" if len(self.elements) > 1 else str(self.job_id)


@dataclass(frozen=True)
class Submission:
    """What one `mvar submit` sent."""

    folder: Path
    profile: Profile
    code: Path
    created: str
    jobs: tuple[Job, ...] = field(default=())

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def logs(self) -> Path:
        """Where the processes' output goes, and submitit's files."""
        return self.folder / "logs"

    def write(self) -> None:
        """Store the description, atomically."""
        jobs = [
            {"name": j.name, "job_id": j.job_id, "elements": j.elements, "cancelled": sorted(j.cancelled)}
            for j in self.jobs
        ]
        values = {"created": self.created, "profile": self.profile.model_dump(mode="json"), "code": str(self.code)}
        write_document(self.folder / "submission.json", values | {"jobs": jobs})

    def works(self, job: str, index: int) -> list[Work]:
        """What one element makes, in order."""
        with (self.folder / f"{job}.jsonl").open() as lines:
            line = next(line for number, line in enumerate(lines) if number == index)
        return [Work(w["kind"], w["key"], from_dict(RunConfig, w["config"])) for w in json.loads(line)]


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
    """A submission by its folder."""
    values = read_document(folder / "submission.json")
    jobs = tuple(
        Job(j["name"], tuple(map(tuple, j["elements"])), j["job_id"], frozenset(j["cancelled"])) for j in values["jobs"]
    )
    profile = from_dict(Profile, values["profile"])
    return Submission(folder, profile, Path(values["code"]), values["created"], jobs)


def submissions(store: Store) -> list[Submission]:
    """Every submission, oldest first."""
    return [read(path.parent) for path in sorted(store.root.absolute().glob("submissions/*/submission.json"))]


def note_cancelled(folder: Path, ended: Iterable[tuple[str, int]]) -> None:
    """Note elements (job's name, index) as cancelled: jobs that are requeued at this moment see it and leave."""
    ended = set(ended)
    _change(folder, lambda job: replace(job, cancelled=job.cancelled | {i for name, i in ended if name == job.name}))


def note_job_id(folder: Path, name: str, job_id: str) -> Submission:
    """Note what SLURM calls a job; returns the submission as it is now."""
    return _change(folder, lambda job: replace(job, job_id=job_id) if job.name == name else job)


def _change(folder: Path, change: Callable[[Job], Job]) -> Submission:
    with FileLock(folder / ".lock"):
        found = read(folder)
        found = replace(found, jobs=tuple(map(change, found.jobs)))
        found.write()
    return found


@contextmanager
def exclusive(store: Store) -> Iterator[None]:
    """One at a time: two that look at the queue and then submit would submit everything twice."""
    folder = store.root / "submissions"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=EXCLUSIVE_TIMEOUT_S):
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
