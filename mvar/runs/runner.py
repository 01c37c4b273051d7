"""Runs a list of configs on this machine: shared stages first, then runs, longest first, in worker processes."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mvar.config import RunConfig, RuntimeConfig
from mvar.errors import print_to_nowhere, warn_once
from mvar.runs import workers
from mvar.runs.at_hand import machine_here, shared_out
from mvar.runs.display import Display, make_display
from mvar.runs.executors.contract import Summary
from mvar.runs.measured import to_measure
from mvar.runs.pace import Pace
from mvar.runs.plan import RUN, Task, sampling_flops, tasks_of
from mvar.runs.signals import handled
from mvar.runs.slowness import warn_of_slow_runs
from mvar.runs.states import DONE, FAILED, STOPPED
from mvar.runs.store import RunDirectory, Store
from mvar.runs.workers import Board, Outcome

POLL_S = 0.25
GPU = "CUDA_VISIBLE_DEVICES"
SKIPPED = "skipped"
WORTH_A_TEAM = 1e15  # FLOPs: some tens of seconds of a GPU in fp32, as long as it takes a team to begin


def run_all(
    configs: Sequence[RunConfig],
    store: Store,
    num_workers: int | None = None,
    display: Display | None = None,
    directory: RunDirectory | None = None,
) -> Summary:
    """Make every run that is not done.

    One failure does not stop the others. Ctrl-C, SIGTERM or a closed terminal (SIGHUP, unless it is ignored as under
    nohup) lets each worker finish its step and save; a second Ctrl-C or SIGTERM ends at once, which loses no more than
    the steps since the last checkpoint.

    Args:
        configs: the runs; equal ones count once.
        store: where they are kept.
        num_workers: worker processes; None: one for every `runtime.threads` cores, or one for each GPU.
        display: None: bars on a terminal, lines elsewhere.
        directory: that all configs are evaluations of; None: each run's own.
    """
    tasks = tasks_of(configs, store, directory)
    summary = Summary(num_runs=len({(config.run_id, config.evaluation_id) for config in configs}))
    if tasks:
        places = worker_places(configs[0].runtime, num_workers)
        gpus = gpus_of(tasks, places)
        places = places[: sum(gpus.values())]
        runs = [(task.config, directory or store.run_of(task.config)) for task in tasks if task.kind == RUN]
        untrained = [config for config, run in runs if not run.weights.is_file()]
        warn_of_slow_runs(untrained, int(places[0]["OMP_NUM_THREADS"]))
        with _Runner(tasks, store, places, display or make_display(tasks), gpus) as runner:
            summary.interrupted = runner.run()
            summary.outcomes = runner.outcomes
    ended = {(c.run_id, c.evaluation_id): (c, directory or store.run_of(c)) for c in configs}
    done = [(config, run) for config, run in ended.values() if run.is_done(config.evaluation_id)]
    summary.num_done = len(done)
    summary.lacking = dict(Counter(name for config, run in done for name in to_measure(run, config)))
    return summary


def worker_places(runtime: RuntimeConfig, num_workers: int | None) -> list[dict[str, str]]:
    """One environment a worker: its threads and, where there are GPUs, the one that it sees."""
    threads = str(runtime.threads or 1)
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    gpus = _visible_gpus() if runtime.device != "cpu" else []
    count = num_workers or len(gpus) or max(1, _num_cpus() // int(threads))
    if not gpus:
        return [environment] * count
    return [environment | {GPU: gpus[i % len(gpus)]} for i in range(count)]


def gpus_of(tasks: Sequence[Task], places: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """How many of the places each task takes, by its key: one, and of GPUs as many as a training is planned on, or
    where fewer trainings than that leave some idle, its share of all; all of them where many tokens are written.

    Raises:
        UserError: a training fits on none of them, nor on all.
    """
    count = len({place[GPU] for place in places if GPU in place})
    found = {task.key: 1 for task in tasks}
    if not count:
        return found
    found |= {task.key: count for task in tasks if task.kind == "tokens" and task.flops >= WORTH_A_TEAM}
    untrained = [task for task in tasks if task.kind == RUN and not RunDirectory(Path(task.run)).weights.is_file()]
    given = shared_out([task.config for task in untrained], machine_here(count)) if untrained else []
    return found | {task.key: gpus for task, gpus in zip(untrained, given, strict=True)}


def _visible_gpus() -> list[str]:
    count = torch.cuda.device_count()
    listed = [name for name in os.environ.get(GPU, "").split(",") if name]
    return listed[:count] if listed else [str(i) for i in range(count)]


def _num_cpus() -> int:
    from joblib import cpu_count  # knows affinity and the limits of containers

    return cpu_count()


class _Runner:
    """The loop: hands ready tasks to free workers, shows progress, takes results."""

    def __init__(
        self,
        tasks: list[Task],
        store: Store,
        places: list[dict[str, str]],
        display: Display,
        gpus: Mapping[str, int] | None = None,
    ) -> None:
        self._waiting = list(tasks)
        self._tasks = tasks
        self._keys = {task.key for task in tasks}
        self._store, self._display = store, display
        self._context = get_context("spawn")
        self._board = Board(self._context, len(places))
        self._places = places
        self._pools: list[ProcessPoolExecutor | None] = [None] * len(places)
        self._gpus = gpus or {}  # places that a task takes, by its key; others take one
        self._running: dict[Future[Outcome], tuple[list[int], Task]] = {}  # of a team the first one's
        self._followers: dict[Future[Outcome], Future[Outcome]] = {}  # of a team the others', and the first one's
        self._meetings = TemporaryDirectory(prefix="mvar-")
        self._ended: dict[str, Outcome] = {}
        self.outcomes: dict[str, Outcome] = {}
        self._interrupts = 0
        flops, kinds = {task.key: task.flops for task in tasks}, {task.key: task.kind for task in tasks}
        self._pace = Pace(flops, len(places), kinds)
        self._reached: dict[str, tuple[str, int, int]] = {}  # by running tasks, as last seen
        self._warnings = [0] * len(places)  # how many of each worker's were shown
        self._shown = time.monotonic()

    def __enter__(self) -> "_Runner":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:  # e.g. nobody reads what is printed: no worker goes on for a parent that gave up
            self._board.stop()
        try:
            self._display.close()
        finally:
            for pool in self._pools:
                if pool is not None:
                    pool.shutdown(wait=self._interrupts < 2, cancel_futures=True)
            self._meetings.cleanup()

    def run(self) -> bool:
        """Until everything has ended; True where it was interrupted."""
        with self._signals():
            while self._running or (self._waiting and not self._board.stopping):
                self._dispatch()
                wait([*self._running, *self._followers], timeout=POLL_S, return_when=FIRST_COMPLETED)
                for future in [future for future in self._running if future.done()]:
                    self._take(future)
                self._end_teams_of_the_dead()
                self._show()
        return self._board.stopping

    def _signals(self) -> AbstractContextManager[None]:
        def interrupt(_: int) -> None:
            self._interrupts += 1
            self._board.stop()
            if self._interrupts > 1:
                self._kill()

        def hang_up(_: int) -> None:  # never ends at once
            self._board.stop()
            _let_go_of_the_terminal()

        return handled(interrupt, hang_up)

    def _kill(self) -> None:
        for pool in self._pools:
            for process in list(((pool and pool._processes) or {}).values()):
                process.kill()

    # Tasks ------------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        self._drop_hopeless()
        while not self._board.stopping:
            task = next((task for task in self._waiting if self._is_ready(task)), None)
            numbers = self._idle(self._gpus.get(task.key, 1)) if task else []
            if task is None or not numbers:  # who needs several places waits for them, and others behind it
                return
            self._waiting.remove(task)
            self._display.begin(task)
            what = (task.kind, task.config.model_dump(mode="json"), str(self._store.root.absolute()), task.run)
            first, *others = [
                self._submit(n, *call) for n, call in zip(numbers, self._calls(numbers, what), strict=True)
            ]
            self._running[first] = (numbers, task)
            self._followers |= dict.fromkeys(others, first)

    def _calls(self, numbers: list[int], what: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """What each of some workers is to do of a task; several get to see the GPUs of all of them."""
        if len(numbers) == 1:
            return [(workers.work, *what)]
        for number in numbers:
            self._dismiss(number)
            place = self._places[number]
            seen = {GPU: ",".join(self._places[n][GPU] for n in numbers)} if GPU in place else {}
            self._pools[number] = self._new_pool(number, place | seen)
        meeting = os.path.join(self._meetings.name, f"{len(self._waiting)}.json")
        return [(workers.work_together, rank, len(numbers), meeting, *what) for rank in range(len(numbers))]

    def _idle(self, count: int) -> list[int]:
        """So many workers that have nothing to do, on as many GPUs; empty where there are not that many."""
        busy = {number for numbers, _ in self._running.values() for number in numbers}
        found = {self._places[n].get(GPU, str(n)): n for n in reversed(range(len(self._pools))) if n not in busy}
        return sorted(found.values())[:count] if len(found) >= count else []

    def _submit(self, number: int, *call: Any) -> Future[Outcome]:
        with _blocked_interrupts():  # multiprocessing's own helper comes with it, and unblocks Ctrl-C after that
            pool = self._pool(number)
        with _blocked_interrupts():  # a worker that is just being made must not die of Ctrl-C
            return pool.submit(*call)

    def _pool(self, number: int) -> ProcessPoolExecutor:
        """The pool of one worker; a pool each, so that one worker's death leaves the others alone."""
        pool = self._pools[number] = self._pools[number] or self._new_pool(number, self._places[number])
        return pool

    def _new_pool(self, number: int, environment: Mapping[str, str]) -> ProcessPoolExecutor:
        arguments = (self._board, number, int(environment["OMP_NUM_THREADS"]), environment, os.getpid())
        return ProcessPoolExecutor(1, self._context, initializer=workers.start, initargs=arguments)

    def _is_ready(self, task: Task) -> bool:
        """Whether what it needs is there, and no other worker is in its run's directory: it would wait for that one."""
        if task.run and task.run in {other.run for _, other in self._running.values()}:
            return False
        return all(key not in self._keys or self._state(key) == DONE for key in task.needs)

    def _state(self, key: str) -> str | None:
        return self._ended[key].state if key in self._ended else None

    def _drop_hopeless(self) -> None:
        """End tasks whose stage failed: they would only fail for the same reason."""
        for task in list(self._waiting):
            lacking = [key for key in task.needs if self._state(key) in (FAILED, SKIPPED)]
            if lacking:
                self._waiting.remove(task)
                self._end(task, Outcome(SKIPPED, f"needs {lacking[0]}"))

    def _take(self, future: Future[Outcome]) -> None:
        numbers, task = self._running.pop(future)
        try:
            outcome = future.result()
        except BrokenProcessPool:
            self._dismiss(numbers[0])
            outcome = self._died(task)
        if len(numbers) > 1:
            self._followers = {other: first for other, first in self._followers.items() if first is not future}
            for number in numbers:
                self._dismiss(number)
        if outcome.state == STOPPED:
            self._board.stop()  # a worker was asked to stop from outside: all do
        self._end(task, outcome)

    def _end_teams_of_the_dead(self) -> None:
        """A process of a team that is no more, or has failed, ends the others: they would wait for it."""
        for other, first in self._followers.items():
            if other.done() and not first.done() and (other.exception() or other.result().state == FAILED):
                self._dismiss(self._running[first][0][0])

    def _dismiss(self, number: int) -> None:
        """End a worker, whatever it does, and see it gone; a later task gets a new one."""
        pool, self._pools[number] = self._pools[number], None
        if pool is None:
            return
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown()

    def _died(self, task: Task) -> Outcome:
        if self._board.stopping:
            return Outcome(STOPPED)
        outcome = Outcome(FAILED, "its worker process was killed (out of memory?)")
        if task.kind == RUN:
            directory = RunDirectory(Path(task.run))
            stage = (directory.status() or {}).get("stage", "train")
            directory.write_status(FAILED, stage, reason=outcome.reason)
        return outcome

    def _end(self, task: Task, outcome: Outcome) -> None:
        self._ended[task.key] = self.outcomes[task.key] = outcome
        self._pace.end(task.key, outcome.state == DONE)
        self._display.end(task, outcome)

    # Progress ---------------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        for number in range(len(self._places)):
            told = self._board.told(number)
            for line in told[self._warnings[number] :]:
                warn_once(line)  # bars on a terminal make room for it
            self._warnings[number] = len(told)
        shares, reached = {}, {}
        for (number, *_), task in self._running.values():
            stage, done, total = reached[task.key] = self._board.read(number)
            self._display.advance(task, stage, done, total)
            shares[task.key] = task_share(task, stage, done, total)
        now = time.monotonic()
        self._pace.advance(now - self._shown, shares, reached != self._reached)
        self._shown, self._reached = now, reached
        self._display.overall(self._pace.share, self._pace.left_s(), self._pace.still_s)


def task_share(task: Task, stage: str, done: int, total: int) -> float:
    """The share of a task's FLOPs that is done, 0 to 1."""
    within = done / total if total else 0.0
    if task.kind != RUN:
        return within
    training = max(0.0, 1 - sampling_flops(task.config) / task.flops)
    return {"train": training * within, "sample": training + (1 - training) * within, "evaluate": 1.0}.get(stage, 0.0)


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _let_go_of_the_terminal() -> None:
    """Where the terminal is gone, print to nowhere: a write that fails would end the runner before its workers."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            print_to_nowhere(stream)
