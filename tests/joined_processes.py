"""The processes of one job: the first does the work, the others follow it."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

from mvar.runs import pipeline
from mvar.runs.states import Stopped
from mvar.runs.store import Store
from mvar.training import distributed

LIMIT_S = 100


def take_part(root: Path, rank: int, world: int, work: Callable[[Store], object], rounds: int | None) -> None:
    """One of the processes; the last one is asked to stop after some rounds."""
    asked: list[int] = []
    with distributed.joined(rank, world, rank, world, root / "meeting.json"):
        if rank:
            stops = rank == world - 1 and rounds is not None
            pipeline.follow(Store(root), lambda: asked.append(0) or (stops and len(asked) > rounds))
            return
        try:
            work(Store(root))
        except Stopped:
            assert rounds is not None


def together(root: Path, world: int, work: Callable[[Store], object], rounds: int | None = None) -> None:
    """All of them, to their end; `rounds`: how often the last is asked before it stops (none: never)."""
    context = multiprocessing.get_context("fork")
    group = [context.Process(target=take_part, args=(root, rank, world, work, rounds)) for rank in range(world)]
    for process in group:
        process.start()
    for process in group:
        process.join(LIMIT_S)
        process.kill()  # nothing where it has ended
    assert [process.exitcode for process in group] == [0] * world
