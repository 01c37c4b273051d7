"""A set worked through batch by batch by all processes of a job, in rounds: no set is in memory at any time.

A round gives each process one batch; the first process gathers what they make of them, in order. Batches and order do
not depend on how many processes there are, and so no result does.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from mvar.data.prefetch import Prefetched
from mvar.progress import Progress

Heed = Callable[[], None]  # called by all processes before each round; what it raises it raises in all of them


class Sharing(Protocol):
    """The processes that share the work, as one of them sees them: `mvar.training.distributed.Group`."""

    rank: int
    world: int

    def gather(self, part: Tensor) -> list[Tensor]:
        """Every process's tensor on the CPU, by rank, in the first process; an empty list in the others."""
        ...


class _Alone:
    rank, world = 0, 1

    def gather(self, part: Tensor) -> list[Tensor]:
        return [part.cpu()]


ALONE = _Alone()
Together = Callable[[int], AbstractContextManager[tuple[Sharing, Heed]]]  # of a set of which so many rows are done


def nothing() -> None:
    """Heeds nothing."""


@contextmanager
def alone(done: int = 0) -> Iterator[tuple[Sharing, Heed]]:
    """One process, which nobody stops."""
    yield ALONE, nothing


def in_rounds(
    item: Callable[[int], Tensor],
    count: int,
    batch_size: int,
    work: Callable[[Tensor], tuple[Tensor, ...]],
    group: Sharing = ALONE,
    progress: Progress | None = None,
    heed: Heed = nothing,
    start: int = 0,
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, ...]]:
    """What `work` makes of the batches of a set, in order, on the CPU; in other processes than the first nothing.

    Args:
        item: one row of the set by its number.
        count: rows of the set, one or more.
        batch_size: rows of a batch; the last one may have fewer.
        work: tensors with a row for each row of a batch, all of them of the same types and shapes.
        group: the processes that share the work; all of them use this iterator up.
        progress: called with rows done and in all.
        heed: see `Heed`.
        start: rows that are done already.
        num_workers: threads that call `item` ahead of time, for a batch; 0: between batches.
    """
    turns = _turns(count, batch_size, group, start)
    numbers = (i for _, own in turns for i in own)
    with Prefetched(item, numbers, num_workers, depth=batch_size) as loaded:
        for done, own in turns:
            heed()
            found = work(torch.stack([next(loaded) for _ in own]))
            until = min(done + group.world * batch_size, count)
            columns = [_gathered(group, part, batch_size) for part in found]
            for begin, *parts in zip(range(done, until, batch_size), *columns, strict=False):
                yield tuple(part[: min(batch_size, count - begin)] for part in parts)
            if progress:
                progress(until, count)


def _turns(count: int, batch_size: int, group: Sharing, start: int) -> list[tuple[int, range]]:
    """Of each round the rows that are done before it, and those that are this process's to do."""
    turns = []
    for done in range(start, count, group.world * batch_size):
        first = min(done + group.rank * batch_size, count)
        stop = min(first + batch_size, count)
        turns.append((done, range(first, stop) if first < stop else range(1)))  # without a batch: one, for its shapes
    return turns


def _gathered(group: Sharing, part: Tensor, rows: int) -> list[Tensor]:
    """Every process's rows, of one number, as collectives want it."""
    if group.world == 1:
        return [part.cpu()]
    padded = part.new_zeros(rows, *part.shape[1:])
    padded[: len(part)] = part
    return group.gather(padded)
