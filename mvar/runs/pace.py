"""How fast work gets done, and so how long the rest of it takes."""

from collections.abc import Mapping

STALLED_S = 120.0  # in which no task went on: no time left is told then


class Pace:
    """Estimates the time left from what the workers of this call have done, and from nothing that was there before.

    Args:
        flops: the work of each task. Those without any (their work is not counted) are left out of the pace.
        num_workers: tasks that run at a time.
        kinds: of tasks: as much work of one kind takes as long, of another it may not; None: all of one.
    """

    ENOUGH = 0.01  # of all the work: before it is done nothing is said

    def __init__(self, flops: Mapping[str, float], num_workers: int, kinds: Mapping[str, str] | None = None) -> None:
        self._flops, self._num_workers = dict(flops), num_workers
        self._kinds = {key: (kinds or {}).get(key, "") for key in flops}
        self._everything = sum(flops.values())
        self._shares = dict.fromkeys(flops, 0.0)
        self._found: dict[str, float] = {}  # the share that an earlier, interrupted call had done
        self._ended: set[str] = set()
        self._busy_s = dict.fromkeys(self._kinds.values(), 0.0)
        self.still_s = 0.0  # since any task was seen to move

    def advance(self, seconds: float, shares: Mapping[str, float], moves: bool | None = None) -> None:
        """Seconds have passed in which the tasks of `shares` were at work; these shares of them are done, 0 to 1.

        `moves`: whether any of them was seen to go on; None: whether a share did.
        """
        if moves is None:
            moves = any(share != self._shares[key] for key, share in shares.items())
        self.still_s = 0.0 if moves or not shares else self.still_s + seconds
        for key, share in shares.items():
            self._shares[key] = share
            if key in self._found:
                self._busy_s[self._kinds[key]] += seconds if self._flops[key] else 0.0
            elif share:  # its first sign: what was there before, and the time of getting under way, are no speed
                self._found[key] = share

    def end(self, key: str, done: bool) -> None:
        """A task has ended: well, or with the rest of it never to be done."""
        self._ended.add(key)
        self.still_s = 0.0
        if done:
            self._shares[key] = 1.0

    @property
    def share(self) -> float:
        """The share of all work that is behind, 0 to 1; what was given up is."""
        behind = sum(f * (1.0 if key in self._ended else self._shares[key]) for key, f in self._flops.items())
        return behind / self._everything if self._everything else 1.0

    def left_s(self) -> float | None:
        """Seconds left; None where too little is done to tell, or nothing moves.

        All workers share the rest, but a task has one worker: the longest rest of one is the least that it takes.
        """
        made = dict.fromkeys(self._busy_s, 0.0)
        for key, f in self._flops.items():
            made[self._kinds[key]] += f * (self._shares[key] - self._found.get(key, 0.0))
        all_made, all_busy = sum(made.values()), sum(self._busy_s.values())
        if all_made <= self.ENOUGH * self._everything or not all_busy or self.still_s >= STALLED_S:
            return None
        of_kind = {kind: self._busy_s[kind] / f if f else all_busy / all_made for kind, f in made.items()}
        left = [key for key in self._flops if key not in self._ended]
        rests = [self._flops[key] * (1 - self._shares[key]) * of_kind[self._kinds[key]] for key in left]
        return max(sum(rests) / self._num_workers, max(rests, default=0.0))
