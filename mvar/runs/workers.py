"""A worker process: runs tasks one after another, shows its progress in shared memory, stops at a step's end.

Shared memory without locks, so that a worker killed at any moment leaves nothing locked. torch is imported only once
the environment (threads, visible GPUs) is set.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, ClassVar

from mvar.config import RunConfig, from_dict
from mvar.errors import is_mistake, pass_warnings_on
from mvar.plugins import begin_child
from mvar.runs.states import DONE, FAILED, STOPPED, Stopped
from mvar.runs.store import RunDirectory, Store, one_line

STAGES = ("", "tokenizer", "tokens", "extractor", "floors", "train", "sample", "evaluate")
TOLD_BYTES = 8192  # of warnings that a worker can pass on; its own stderr has what comes after
ORPHAN_GRACE_S = 15.0  # for a step's end and a checkpoint, once the parent is gone


class Board:
    """What workers and their parent tell each other: three numbers and some text a worker, and one flag for all."""

    def __init__(self, context: SpawnContext, num_workers: int) -> None:
        self._cells = context.RawArray("d", 3 * num_workers)
        self._told = [context.RawArray("c", TOLD_BYTES) for _ in range(num_workers)]
        self._stop = context.RawValue("b", 0)

    def write(self, worker: int, stage: str, done: int, total: int) -> None:
        """Show how far a worker is."""
        self._cells[3 * worker : 3 * worker + 3] = [STAGES.index(stage), done, total]

    def read(self, worker: int) -> tuple[str, int, int]:
        """How far a worker is: (stage, done, total)."""
        stage, done, total = self._cells[3 * worker : 3 * worker + 3]
        return STAGES[int(stage)], int(done), int(total)

    def tell(self, worker: int, line: str) -> None:
        """Add a line to what a worker has told."""
        told = self._told[worker].value + line.encode() + b"\n"
        if len(told) < TOLD_BYTES:
            self._told[worker].value = told
        else:
            print(f"mvar: warning: {line}", file=sys.stderr)

    def told(self, worker: int) -> list[str]:
        """Every line that a worker has told so far; one that is just being written is not among them."""
        *lines, _ = self._told[worker].value.decode(errors="replace").split("\n")
        return lines

    def stop(self) -> None:
        """Ask all workers to stop at the next step's end."""
        self._stop.value = 1

    @property
    def stopping(self) -> bool:
        """Whether workers were asked to stop."""
        return bool(self._stop.value)


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    state: str  # done, stopped or failed
    reason: str = ""  # one line
    is_user_error: bool = False
    seconds: float = 0.0


class _Worker:
    """This process, where it is a worker."""

    board: Board
    number: int
    threads: int
    terminated = False
    orphaned = False
    busy = threading.Event()  # with a task
    checked: ClassVar[dict[Path, dict[str, Any]]] = {}  # as `Store.checked`, by whatever task

    @classmethod
    def should_stop(cls) -> bool:
        return cls.terminated or cls.orphaned or cls.board.stopping

    @classmethod
    def progress(cls, stage: str, done: int, total: int) -> None:
        cls.board.write(cls.number, stage, done, total)


def start(board: Board, number: int, threads: int, environment: Mapping[str, str], parent: int) -> None:
    """Initialise this process as a worker. Ctrl-C and a closed terminal are the parent's to handle; SIGTERM stops at
    the next step's end."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: setattr(_Worker, "terminated", True))
    _Worker.board, _Worker.number, _Worker.threads = board, number, threads
    pass_warnings_on(lambda line: board.tell(number, line))
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    """End this process once its parent is gone, a step and a checkpoint later: nobody else would."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _Worker.orphaned = True
    deadline = time.monotonic() + ORPHAN_GRACE_S
    while _Worker.busy.is_set() and time.monotonic() < deadline:
        time.sleep(0.1)
    os._exit(1)


def work(kind: str, config_values: dict[str, Any], root: str, run: str = "") -> Outcome:
    """Do one task: a shared stage by its kind, or `run` in a directory. Never raises: a failure is an outcome."""
    began = time.monotonic()
    _Worker.busy.set()
    _Worker.progress("", 0, 0)
    try:
        begin_child()
        config = from_dict(RunConfig, config_values, lenient=True)  # checked where it was asked for
        store = Store(Path(root))
        store.checked = _Worker.checked
        state, reason, is_user_error = _work(kind, config, store, run)
    except Stopped:
        state, reason, is_user_error = STOPPED, "", False
    except Exception as error:
        state, reason, is_user_error = FAILED, one_line(error), is_mistake(error)
    finally:
        _Worker.busy.clear()
    return Outcome(state, reason, is_user_error, time.monotonic() - began)


def work_together(rank: int, world: int, meeting: str, kind: str, config_values: Any, root: str, run: str) -> Outcome:
    """Do one task as one of several processes; the first leads. Never raises; its process is of no use afterwards.

    Args:
        rank, world: which of how many.
        meeting: a file that does not exist yet, where they find each other.
        kind, config_values, root, run: as `work`.
    """
    import torch

    from mvar.runs.pipeline import follow
    from mvar.training import distributed

    outcome = Outcome(DONE)
    try:
        with distributed.joined(rank, world, rank, world, Path(meeting)):
            if rank:
                _Worker.busy.set()
                begin_child()
                torch.set_num_threads(_Worker.threads)
                follow(Store(Path(root)), _Worker.should_stop)
            else:
                outcome = work(kind, config_values, root, run)
                if outcome.state == FAILED:  # the others may be anywhere: the parent ends them
                    raise RuntimeError(outcome.reason)
    except Exception as error:
        return outcome if outcome.state == FAILED else Outcome(FAILED, one_line(error), is_mistake(error))
    return outcome


def _work(kind: str, config: RunConfig, store: Store, run: str) -> tuple[str, str, bool]:
    import torch

    torch.set_num_threads(_Worker.threads)
    from mvar.runs.pipeline import execute, execute_shared

    if run:  # the whole of it, or the metrics that it lacks
        directory = RunDirectory(Path(run))
        return execute(config, store, _Worker.progress, _Worker.should_stop, directory), "", False
    execute_shared(kind, config, store, _Worker.progress, _Worker.should_stop)
    return DONE, "", False
