"""How fast work gets done, and so how long the rest of it takes."""

from collections.abc import Mapping


class Pace:
    """Estimates the time left from what the workers of this call have done, and from nothing that was there before.

    Args:
        flops: the work of each task. Those without any (their work is not counted) are left out of the pace.
        num_workers: tasks that run at a time.
    """

    ENOUGH = 0.01  # of all the work: before it is done nothing is said

    def __init__(self, flops: Mapping[str, float], num_workers: int) -> None:
        self._flops, self._num_workers = dict(flops), num_workers
        self._everything = sum(flops.values())
        self._shares = dict.fromkeys(flops, 0.0)
        self._found: dict[str, float] = {}  # the share that an earlier, interrupted call had done
        self._ended: set[str] = set()
        self._busy_s = 0.0

    def advance(self, seconds: float, shares: Mapping[str, float]) -> None:
        """Seconds have passed in which the tasks of `shares` were at work; these shares of them are done, 0 to 1."""
        for key, share in shares.items():
            self._shares[key] = share
            if key in self._found:
                self._busy_s += seconds if self._flops[key] else 0.0
            elif share:  # its first sign: what was there before, and the time of getting under way, are no speed
                self._found[key] = share

    def end(self, key: str, done: bool) -> None:
        """A task has ended: well, or with the rest of it never to be done."""
        self._ended.add(key)
        if done:
            self._shares[key] = 1.0

    @property
    def share(self) -> float:
        """The share of all work that is behind, 0 to 1; what was given up is."""
        behind = sum(f * (1.0 if key in self._ended else self._shares[key]) for key, f in self._flops.items())
        return behind / self._everything if self._everything else 1.0

    def left_s(self) -> float | None:
        """Seconds left; None where too little is done to tell.

        All workers share the rest, but a task has one worker: the longest rest of one is the least that it takes.
        """
        made = sum(f * (self._shares[key] - self._found.get(key, 0.0)) for key, f in self._flops.items())
        if made <= self.ENOUGH * self._everything or not self._busy_s:
            return None
        rests = [f * (1 - self._shares[key]) for key, f in self._flops.items() if key not in self._ended]
        return max(sum(rests) / self._num_workers, max(rests, default=0.0)) * self._busy_s / made
