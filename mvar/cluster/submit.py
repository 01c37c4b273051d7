"""Send what is missing of some runs to SLURM: shared stages first, runs as one array behind them. Returns at once.

However many runs: one `scontrol`, one `squeue`, one `sbatch --test-only` each distinct request, one `sbatch` each
array (one for the stages, one for every MaxArraySize runs).
"""

import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mvar import layout, plugins
from mvar.cluster import scheduler, snapshot
from mvar.cluster.guard import WARNINGS
from mvar.cluster.job import Element
from mvar.cluster.profiles import Profile
from mvar.cluster.queue import active_elements
from mvar.cluster.submission import (
    STAGES,
    START_MARK,
    Claim,
    Submission,
    Work,
    check_place,
    job_of,
    new_id,
    note_job_id,
    note_sent,
)
from mvar.config import RunConfig
from mvar.errors import UserError, warn
from mvar.runs.plan import METRICS, RUN, Task, tasks_of
from mvar.runs.store import Store

if TYPE_CHECKING:
    from submitit import SlurmExecutor


@dataclass(frozen=True)
class Plan:
    """What a submission would send."""

    stages: list[list[Task]]  # one element each distinct tokenizer
    runs: list[list[Task]]  # one element each `runs_per_job` runs, with all their evaluations
    waits_for: list[str]  # ids of earlier jobs that make stages of these runs
    num_done: int
    num_active: int  # queued or running already
    max_array: int

    def jobs(self) -> Iterator[tuple[str, list[list[Task]]]]:
        """What each call of sbatch sends: how the job's name ends, and its elements. The stages come first."""
        if self.stages:
            yield STAGES, self.stages
        for number, start in enumerate(range(0, len(self.runs), self.max_array)):
            yield f"-runs-{number}", self.runs[start : start + self.max_array]

    @property
    def num_jobs(self) -> int:
        """Calls of sbatch."""
        return sum(1 for _ in self.jobs())


def plan(configs: Sequence[RunConfig], store: Store, runs_per_job: int = 1, act: bool = True, ask: bool = True) -> Plan:
    """What is missing and neither queued nor running. Asks SLURM for its configuration and for its queue.

    With `act=False` nothing is changed: an interrupted submission is neither finished nor undone. With `ask=False`
    there is no SLURM to ask: its default size of arrays, and nothing queued.

    Raises:
        SchedulerError: SLURM is not there or does not answer.
    """
    max_array = scheduler.max_array_size() if ask else scheduler.MAX_ARRAY_SIZE
    # a job of a finished run computes the metrics that it lacks
    tasks = [replace(t, kind=RUN) if t.kind == METRICS else t for t in tasks_of(configs, store)]
    busy = active_elements(store, act) if ask else {}
    busy_runs = {key.partition("/")[0] for key in busy if "/" in key}  # one run's two evaluations share a directory
    runs = [t for t in tasks if t.kind == RUN and t.name not in busy_runs]
    runs = [t for t in runs if not store.run(t.name).is_locked()]  # made by `mvar run` here and now
    needed = _stages_for(runs, tasks)
    waits_for = sorted({busy[t.key] for t in needed if t.key in busy})
    stages = _by_tokenizer([t for t in needed if t.key not in busy])
    num_open = sum(t.kind == RUN for t in tasks)
    elements = _packed(runs, runs_per_job)
    return Plan(stages, elements, waits_for, len(configs) - num_open, num_open - len(runs), max_array)


def _packed(tasks: Sequence[Task], runs_per_job: int) -> list[list[Task]]:
    """The tasks of each element: all evaluations of a run together, since two jobs in its directory would wait."""
    runs: dict[str, list[Task]] = {}
    for task in tasks:
        runs.setdefault(task.name, []).append(task)
    grouped = list(runs.values())
    return [list(chain(*grouped[i : i + runs_per_job])) for i in range(0, len(grouped), runs_per_job)]


def _stages_for(runs: Sequence[Task], tasks: Sequence[Task]) -> list[Task]:
    """The stages, not yet done, that the given runs need (floors come with the tokenizer and the extractor)."""
    keys = {key for run in runs for key in run.needs}
    tokenizers = {run.config.tokenizer_id for run in runs}
    return [t for t in tasks if t.key in keys or (t.kind == "floors" and runs and t.config.tokenizer_id in tokenizers)]


def _by_tokenizer(stages: Sequence[Task]) -> list[list[Task]]:
    groups: dict[str, list[Task]] = {}
    for task in stages:
        groups.setdefault(task.config.tokenizer_id, []).append(task)
    return list(groups.values())


def submit(found: Plan, store: Store, profile: Profile) -> Submission:
    """Submit what `check` has found possible.

    Raises:
        SchedulerError: a failing sbatch; what was submitted before it is cancelled.
    """
    if found.max_array == 1 < len(found.runs):
        warn("MaxArraySize: no arrays here; every run is a job of its own, and array_parallelism does not count")
    folder = store.root.absolute() / layout.SUBMISSIONS / new_id()
    code = snapshot.take(folder.parent / layout.CODE, plugins.loaded())
    folder.mkdir(parents=True)
    jobs = [job_of(folder, job_name(folder, end), elements) for end, elements in found.jobs()]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    submission = Submission(folder, profile, code, created, tuple(jobs), Claim.now())
    submission.logs.mkdir(mode=0o700 if submission.is_private else 0o777)
    submission.write()
    return _send(submission, found.waits_for)


def _send(submission: Submission, waits_for: Sequence[str]) -> Submission:
    waits = list(waits_for)
    num_arrays = sum(not job.is_stages for job in submission.jobs)
    try:
        for job in submission.jobs:
            works = chain(*(submission.works(job.name, i) for i in range(len(job.elements)))) if job.is_stages else None
            profile = profile_of_job(submission.profile, works, num_arrays)
            executor = make_executor(submission, job.name, profile, [] if job.is_stages else waits)
            elements = [Element(str(submission.folder), job.name, i) for i in range(len(job.elements))]
            job_id = _sbatch(executor, elements, profile)
            if submission.is_private:  # nor could others reach into their folder before
                for script in submission.logs.glob("*.sh"):
                    script.chmod(0o600)
            if job.is_stages:
                waits.append(job_id)
            submission = note_job_id(submission.folder, job.name, job_id)
        return note_sent(submission.folder)
    except BaseException as error:  # Ctrl-C too: what is half sent is of no use
        _undo(submission, error)
        raise


def _undo(submission: Submission, error: BaseException) -> None:
    """Cancel what was sent. Where that fails the claim stays, and whoever comes next does it."""
    try:  # by name: an sbatch that got no answer may have submitted all the same
        for job in submission.jobs:
            scheduler.call("scancel", f"--name={job.name}")
    except scheduler.SchedulerError as other:
        if not isinstance(error, UserError):
            return
        raise UserError(f"{error}; what was submitted before could not be cancelled ({other})") from None
    with suppress(OSError):  # a full disk, which the first error has named
        note_sent(submission.folder, undone=True)


def job_name(folder: Path, end: str) -> str:
    """What SLURM calls a job of a submission."""
    return f"mvar-{folder.name}{end}"


def profile_of_job(profile: Profile, stages: Iterable[Task | Work] | None, num_arrays: int) -> Profile:
    """What one job asks for. SLURM caps each array on its own, the profile all of them together.

    Args:
        profile: of the runs.
        stages: that the job makes; None: it makes runs.
        num_arrays: of runs, in the submission.
    """
    if stages is not None:
        return of_stages(profile, stages)
    return profile.model_copy(update={"array_parallelism": max(1, profile.array_parallelism // max(1, num_arrays))})


def of_stages(profile: Profile, stages: Iterable[Task | Work]) -> Profile:
    """What a job of shared stages asks for: all that a run may have where tokens are written, which all its processes
    share; but where a tokenizer is trained first, the others would wait for one of them."""
    every = list(stages)
    trains = any(stage.kind == "tokenizer" and not stage.config.tokenizer.checkpoint for stage in every)
    shares = any(stage.kind == "tokens" for stage in every) and not trains and profile.gpus_per_node
    return profile if shares else profile.for_stages


def _sbatch(executor: "SlurmExecutor", elements: Sequence[Element], profile: Profile) -> str:
    """Submit through submitit, one element as a job and several as one array; returns the job's id."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    with scheduler.clean_environment(profile):
        try:
            if len(elements) == 1:
                return executor.submit(elements[0]).job_id
            with executor.batch():
                jobs = [executor.submit(element) for element in elements]
            return jobs[0].job_id.partition("_")[0]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise scheduler.SchedulerError(f"sbatch: {' '.join(str(error).split())}") from None


def make_executor(
    submission: Submission, name: str, profile: Profile, waits_for: Sequence[str] = (), *, here: bool = True
) -> "SlurmExecutor":
    """submitit's executor for one job: what is asked of SLURM, and how Python is started.

    `kill-on-invalid-dep`: else a run whose stages failed waits for ever. `requeue`: where the site's default is not
    to. `kill-on-bad-exit` and `wait=0`: a process that dies ends the others, which would wait for it; one that has
    done its part does not. With `here=False` it is made without SLURM, for its script.
    """
    from submitit import SlurmExecutor

    class Anywhere(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2

    check_place(submission.logs)
    kind = SlurmExecutor if here else Anywhere
    try:
        executor = kind(submission.logs, python=f"{_blocking()}{shlex.quote(sys.executable)} -m mvar.cluster.guard")
    except RuntimeError:
        raise scheduler.SchedulerError("cluster: srun is not on PATH; allowed: a machine with SLURM") from None
    # submitit takes the signal from a variable of this shell, which the job would not know to heed
    warning = f"USR2@{profile.signal_delay_s}"
    asked = {name: value for name, value in profile.sbatch.items() if value is not False}
    extra: dict[str, str | int | bool] = {"requeue": True, "signal": warning, **asked}
    if waits_for:
        extra |= {"dependency": f"afterok:{':'.join(waits_for)}", "kill-on-invalid-dep": "yes"}
    optional = {n: getattr(profile, n) for n in ("partition", "account", "qos", "constraint", "mem_gb")}
    if "mem_gb" in optional:
        memory = optional.pop("mem_gb")
        optional["mem"] = f"{round(memory * 1024)}M" if memory else None
    executor.update_parameters(
        job_name=name,
        time=profile.timeout_min,
        nodes=profile.nodes,
        ntasks_per_node=profile.num_tasks_per_node,
        cpus_per_task=profile.cpus_per_task,
        gpus_per_node=profile.gpus_per_node or None,
        signal_delay_s=profile.signal_delay_s,
        array_parallelism=profile.array_parallelism,
        srun_args=["--kill-on-bad-exit=1", "--wait=0"],
        setup=_setup(submission, profile),
        additional_parameters=extra,
        **{name: value for name, value in optional.items() if value is not None},
    )
    return executor


@cache
def _blocking() -> str:
    """A prefix that blocks the warning signals before Python itself has started; empty where `env` is older."""
    prefix = " ".join(["env", *(f"--block-signal={signal.Signals(n).name}" for n in sorted(WARNINGS))])
    try:
        supported = subprocess.run([*prefix.split(), "true"], capture_output=True).returncode == 0
    except OSError:
        supported = False
    return f"{prefix} " if supported else ""


def _setup(submission: Submission, profile: Profile) -> list[str]:
    """Shell lines of the batch script: the profile's, then the code that was submitted and the number of threads.

    srun asks for the CPUs of a task anew since SLURM 22.05. PYTHONSAFEPATH: `python -m` would put the working
    directory, often a checkout that has moved on, before the snapshot.
    """
    variables = {
        "PYTHONSAFEPATH": "1",
        "SRUN_CPUS_PER_TASK": str(profile.cpus_per_task),
        "OMP_NUM_THREADS": str(profile.cpus_per_task),
        "MKL_NUM_THREADS": str(profile.cpus_per_task),
        **profile.env,
    }
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    path = f'export PYTHONPATH={shlex.quote(str(submission.code))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    mark = f'echo "{START_MARK} ${{SLURM_RESTART_COUNT:-0}}" >&2'
    return [mark, *profile.setup, *exports, path]


def check(found: Plan, profile: Profile) -> None:
    """Let SLURM check each distinct request (`sbatch --test-only`) before anything is submitted.

    Raises:
        SchedulerError: a request that no node can satisfy, an unknown partition or option; has what SLURM said.
    """
    wanted = [profile] if found.runs else []
    if found.stages:
        wanted.append(of_stages(profile, chain(*found.stages)))
    for one in {p.model_dump_json(): p for p in wanted}.values():
        check_profile(one)


def check_profile(profile: Profile) -> None:
    """Let SLURM check one request.

    Raises:
        SchedulerError: it is refused.
    """
    with tempfile.TemporaryDirectory() as name:
        nowhere = Submission(Path(name), profile, Path(name), "")
        text = make_executor(nowhere, "mvar-test", profile)._make_submission_file_text("true", "test")
        script = Path(name, "request.sh")
        script.write_text(text)
        with scheduler.clean_environment(profile):
            try:
                scheduler.call("sbatch", "--test-only", str(script))
            except scheduler.SchedulerError as error:
                given = profile.model_dump(exclude_defaults=True, exclude={"source", "env"})
                fields = ", ".join(f"{k}={v}" for k, v in given.items())
                raise scheduler.SchedulerError(f"{error}; asked for: {fields or 'the defaults'}") from None
