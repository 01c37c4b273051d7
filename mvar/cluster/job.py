"""What runs in a job: one element of a submission, on one or many processes, until done, failed or asked to stop.

Signals only set a flag. Training asks for it between steps, all processes agree, one checkpoint is written, and only
then the job asks SLURM to queue it again. submitit's own handlers (which pickle and requeue inside the handler) are
replaced before they can run, and no result is pickled: the state is in the run's directory, the exit code is true.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mvar import layout, shipped
from mvar.cluster import scheduler
from mvar.cluster.guard import WARNINGS
from mvar.cluster.submission import PREEMPTED_MARK, START_MARK, Submission, Work, is_cancelled, read
from mvar.config import RunConfig
from mvar.errors import FAILURE, OK, USER_ERROR, UserError
from mvar.files import atomic_write
from mvar.plugins import begin_job
from mvar.runs.measured import to_measure
from mvar.runs.states import FAILED, RUNNING, STOPPED, Stopped
from mvar.runs.store import DONE_ANEW, RUN, Directory, RunDirectory, Store, one_line

REQUEUE_TRIES, REQUEUE_WAIT_S = 10, 2.0  # waits 2, 4 ... 20 s: a controller that is being restarted comes back
EARLY_S = 60  # by which SLURM may warn before it was asked to
STARTING_S = 30  # of a job, before this process begins to count
IDLE_LIMIT = 3  # time limits in a row without any progress, after which more time is what is needed
LAST_WORD_S = 10.0
LOOK_S = 3.0  # between looks at whose a run is
LEFT_OVER = 128 + signal.SIGTERM  # exit code of a job that SLURM is ending anyway


@dataclass(frozen=True)
class Element:
    """One element of a submission: plain values, so that its pickle is the same for every version of the code."""

    folder: str
    job: str
    index: int

    def __call__(self) -> None:
        """Do the work and end the process with its exit code."""
        try:
            code = _Process(self).run()
        except UserError as error:  # a damaged file of the submission
            code = _said(error)
        sys.stdout.flush()
        sys.stderr.flush()
        sys.exit(code)  # no Exception: submitit ends without a result file


class _Process:
    """This process of the job."""

    def __init__(self, element: Element) -> None:
        import submitit

        self._signals: list[int] = []
        print(START_MARK, os.environ.get("SLURM_RESTART_COUNT", "0"), file=sys.stderr, flush=True)
        for number in WARNINGS:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS)  # blocked since mvar.cluster.guard
        self._environment = submitit.JobEnvironment()
        self._element = element
        self._submission: Submission = read(Path(element.folder))
        self._began = time.monotonic()
        self._progress: tuple[str, str, int] = ("", "", 0)  # of which work, stage, how far
        self._owner: dict[str, str] = {}
        self._run: Directory | None = None  # that is being made
        self._was_ours, self._looked = False, 0.0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def should_stop(self) -> bool:
        """Whether SLURM has warned this process. Ends it at once where the run is no longer its own."""
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            if self._is_superseded():
                print("another start of the job makes this run now", file=sys.stderr, flush=True)
                os._exit(LEFT_OVER)  # without a word to the run's directory
        return bool(self._signals)

    def _is_superseded(self) -> bool:
        """Whether the run's status, once this process's, is another's: SLURM lost this node and began anew elsewhere.

        Locks do not always reach other nodes.
        """
        status = (self._run.status() if self._run else None) or {}
        is_ours = all(status.get(name) == value for name, value in self._owner.items())
        was_ours, self._was_ours = self._was_ours, is_ours
        return was_ours and not is_ours

    def progress(self, stage: str, done: int, total: int) -> None:
        """Note how far the work is that need not be done again: time limits that do not move it end a run."""
        self._progress = (self._progress[0], stage, 0 if stage in DONE_ANEW else done)

    # The work ---------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Do the element's works; returns the exit code."""
        from mvar.training import distributed

        environment, element = self._environment, self._element
        begin_job(shipped.PACKAGE.parent)
        if is_cancelled(Path(element.folder), element.job, element.index):
            print("cancelled", file=sys.stderr)
            return LEFT_OVER
        self._owner = {"job": environment.job_id, "start": os.environ.get("SLURM_RESTART_COUNT", "0")}
        os.environ |= {"MVAR_JOB": self._owner["job"], "MVAR_START": self._owner["start"]}  # noted in a run's status
        store = Store(self._submission.folder.parents[1])
        works = self._submission.works(element.job, element.index)
        if environment.num_tasks == 1:
            return self._guarded(lambda: self._work(works, store))
        with distributed.joined(
            environment.global_rank,
            environment.num_tasks,
            environment.local_rank,
            environment.num_tasks // environment.num_nodes,
            self._meeting(),
        ) as team:
            code = self._guarded(lambda: self._follow(store) if team.rank else self._work(works, store))
            if code:
                if team.rank:
                    time.sleep(LAST_WORD_S)  # a bad exit ends all processes: the first one is to write why, first
                sys.stderr.flush()
                os._exit(code)  # tidying up a group that others are stuck in could hang
            return code

    def _meeting(self) -> Path:
        """Where the first process tells the others its address; another file after each requeue."""
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        step = os.environ.get("SLURM_STEP_ID", "0")
        return self._submission.folder / layout.MEETINGS / f"{self._environment.job_id}-{restart}-{step}.json"

    def _guarded(self, work: Callable[[], int]) -> int:
        try:
            try:
                return work()
            except Stopped as stopped:
                return self._leave(one_line(stopped))
        except Exception as error:  # also of a disk on which not even the status can be written
            return _said(error)

    def _work(self, works: list[Work], store: Store) -> int:
        works = [w for w in works if w.kind != RUN or _is_open(store.run(w.name), w.config)]
        if not works:  # a job that was requeued after its end: not worth the import of torch
            return OK
        from mvar.training import distributed

        code, failed = OK, set()
        for work in works:
            if work.name in failed:  # in another of its evaluations
                continue
            try:
                self._make(work, store)
            except Exception as error:
                if isinstance(error, Stopped) or work.kind != RUN or distributed.current_team():
                    raise  # later stages need earlier ones; several processes may be out of step
                failed.add(work.name)
                code = max(code, _said(error))
        return code

    def _make(self, work: Work, store: Store) -> None:
        from mvar.runs.pipeline import execute, execute_shared

        self._progress = (work.name, "", 0)
        self._run, self._was_ours = store.run(work.name) if work.kind == RUN else None, False
        self._refuse_second(store, work)
        if work.kind != RUN:
            execute_shared(work.kind, work.config, store, self.progress, self.should_stop)
        elif execute(work.config, store, self.progress, self.should_stop, store.run(work.name)) == STOPPED:
            raise Stopped("asked to stop")

    def _follow(self, store: Store) -> int:
        from mvar.runs.pipeline import follow

        follow(store, self.should_stop)
        return OK

    def _refuse_second(self, store: Store, work: Work) -> None:
        """Refuse a run that another living job works on: file locks do not reach other nodes on every file system."""
        status = store.run(work.name).status() if work.kind == RUN else None
        other = (status or {}).get("job")
        if not status or status["state"] != RUNNING or other in (None, self._environment.job_id):
            return
        if scheduler.job_state(other) in (*scheduler.ALIVE, "SUSPENDED", "COMPLETING"):
            raise UserError(f"run: {work.name} is being made by job {other}; allowed: one job at a time")

    # Stopping ---------------------------------------------------------------------------------------------------------

    def _leave(self, reason: str) -> int:
        """After the checkpoint: queue the job again, unless SLURM has already decided what becomes of it.

        While SLURM still has the job at work, the signal was a warning: a time limit that comes near, or a
        preemption with grace. Else it is ending the job: by scancel, or to requeue it itself.
        """
        name, stage, done = self._progress
        print(f"stopped at {stage} {done} of {name} by signals {self._signals}", file=sys.stderr)
        if self._environment.global_rank:
            return OK
        if is_cancelled(Path(self._element.folder), self._element.job, self._element.index):
            return self._end(STOPPED, "cancelled", LEFT_OVER)
        job_id, complaint = self._environment.job_id, ""
        for attempt in range(REQUEUE_TRIES):
            try:
                if scheduler.job_state(job_id) not in scheduler.ALIVE:
                    return LEFT_OVER
                if idle := self._idle():
                    return self._end(FAILED, idle, FAILURE, self._progress[0])
                if not attempt and scheduler.is_preempted(job_id):
                    print(PREEMPTED_MARK, file=sys.stderr, flush=True)
                scheduler.call("scontrol", "requeue", job_id)
                print("queued again", file=sys.stderr)
                return OK  # the exit code of a requeued job means nothing
            except scheduler.SchedulerError as error:
                complaint = f"{reason}; could not be queued again: {error}"
                print(f"requeue, attempt {attempt + 1}: {error}", file=sys.stderr)
                if not error.is_passing:
                    break
                time.sleep(REQUEUE_WAIT_S * (attempt + 1))
        return self._end(FAILED, complaint, FAILURE)

    def _idle(self) -> str:
        """Why not to go on: several time limits in a row have passed at the same step; else empty."""
        profile = self._submission.profile
        warned_s = 60 * profile.timeout_min - profile.signal_delay_s - EARLY_S - STARTING_S
        if time.monotonic() - self._began < warned_s:  # preempted early: says nothing about the limit
            return ""
        path = self._submission.folder / layout.LIMITS / f"{self._environment.job_id}.json"
        try:
            progress, count = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            progress, count = None, 0
        count = count + 1 if progress == list(self._progress) else 1
        with suppress(OSError), atomic_write(path) as file:  # a full disk does not keep it from the queue
            file.write(json.dumps([self._progress, count]).encode())
        if count < IDLE_LIMIT:
            return ""
        _, stage, done = self._progress
        return f"{count} time limits in a row ended at {stage} {done}; allowed: a longer timeout_min"

    def _end(self, state: str, reason: str, code: int, only: str = "") -> int:
        store = Store(self._submission.folder.parents[1])
        for work in self._submission.works(self._element.job, self._element.index):
            if only and work.name != only:
                continue
            directory: Directory = store.run(work.name)
            if work.kind != RUN:
                if work.kind == "floors":
                    continue
                directory = store.stage(work.kind, work.key.partition("-")[2])
            status = directory.status()
            if status and status["state"] in (RUNNING, STOPPED):
                directory.write_status(state, status["stage"], reason=reason)
        print(reason, file=sys.stderr)
        return code


def _is_open(run: RunDirectory, config: RunConfig) -> bool:
    """Whether a run, or a metric of its evaluation, is still to be made."""
    return not run.is_done(config.evaluation_id) or bool(to_measure(run, config))


def _said(error: Exception) -> int:
    """Print an exception, a user's mistake as one line; its exit code."""
    if isinstance(error, UserError):
        print(f"mvar: error: {one_line(error)}", file=sys.stderr)
        return USER_ERROR
    traceback.print_exception(error)
    return FAILURE
