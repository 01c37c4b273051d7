"""Micro-batches in order, loaded ahead of time by threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from mvar.training.contract import Objective, Rows

LOOKAHEAD = 2  # micro-batches in flight for each worker


class Feed:
    """The micro-batches of the given steps on the device, in order.

    With workers, `objective.load` runs in threads (image decoding releases the interpreter lock); what is random is
    drawn before that, in order, so the number of workers changes nothing.
    """

    def __init__(
        self,
        objective: Objective,
        part: Callable[[int], list[tuple[int, Rows]]],
        steps: Iterable[int],
        num_workers: int,
        device: torch.device,
    ) -> None:
        self._load, self._device = objective.load, device
        self._pending = self._micro_batches(part, steps)
        self._pool = ThreadPoolExecutor(num_workers) if num_workers else None
        self._depth = num_workers * LOOKAHEAD
        self._queue: deque[tuple[int, Future[Rows]]] = deque()

    @staticmethod
    def _micro_batches(part, steps) -> Iterator[tuple[int, Rows]]:
        for step in steps:
            yield from part(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def next(self) -> tuple[int, Rows]:
        """The number of the next micro-batch's first row in its step's batch, and its loaded rows."""
        if not self._pool:
            first, rows = next(self._pending)
            loaded = self._load(rows)
        else:
            while len(self._queue) < self._depth and (item := next(self._pending, None)):
                self._queue.append((item[0], self._pool.submit(self._load, item[1])))
            first, future = self._queue.popleft()
            loaded = future.result()
        return first, tuple(tensor.to(self._device, non_blocking=True) for tensor in loaded)
