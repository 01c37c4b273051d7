"""Work done ahead of time by threads: reading and decoding files, while something else computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

LOOKAHEAD = 2  # items in flight for each worker

A = TypeVar("A")
B = TypeVar("B")


class Prefetched(Generic[A, B], Iterator[B]):
    """`load(item)` of each item, in their order; the number of workers changes nothing but the time.

    Items are taken one by one, in order and in the caller's thread, so what is random belongs into them. An exception
    of `load` is raised where its result would have come. Leaving the block drops what has not begun and waits for
    what has.

    Args:
        load: what is done; with workers in threads, several at a time.
        items: as many as are wanted; taken only as they are needed.
        num_workers: threads; 0: nothing is done ahead.
        depth: results that may be waiting or in the making; at least `LOOKAHEAD` for each worker.
    """

    def __init__(self, load: Callable[[A], B], items: Iterable[A], num_workers: int, depth: int = 0) -> None:
        self._load, self._items = load, iter(items)
        self._pool = ThreadPoolExecutor(num_workers) if num_workers else None
        self._depth = max(depth, num_workers * LOOKAHEAD)
        self._ahead: deque[Future[B]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __next__(self) -> B:
        if not self._pool:
            return self._load(next(self._items))
        while len(self._ahead) < self._depth:
            try:
                item = next(self._items)
            except StopIteration:
                break
            self._ahead.append(self._pool.submit(self._load, item))
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft().result()
