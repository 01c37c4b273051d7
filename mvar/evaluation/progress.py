"""Progress of something that has several parts."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # (done, total); it may raise to stop the work
STEPS = 100  # that a part counts


def split(progress: Progress | None, count: int) -> list[Progress]:
    """The progress of each of `count` parts of equal weight; together they lead to (count * 100, count * 100)."""

    def part(number: int) -> Progress:
        def report(done: int, total: int) -> None:
            if progress:
                progress(number * STEPS + STEPS * done // max(total, 1), count * STEPS)

        return report

    return [part(number) for number in range(count)]


class Counter:
    """Adds up what is done in batches, and reports it."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, number: int) -> None:
        """So many more are done."""
        self._done = min(self._done + number, self._total)
        if self._progress:
            self._progress(self._done, self._total)
