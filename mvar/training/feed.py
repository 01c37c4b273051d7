"""Micro-batches in order, loaded ahead of time by threads."""

from collections.abc import Callable, Iterable
from typing import Self

import torch

from mvar.data.prefetch import Prefetched
from mvar.training.contract import Objective, Tensors


class Feed:
    """The micro-batches of the given steps on the device, in order.

    With workers, `objective.load` runs in threads (image decoding releases the interpreter lock); what is random is
    drawn before that, in order, so the number of workers changes nothing. For a GPU what is loaded is pinned, so that
    nobody waits for its copy, and the next copy is on its way while one micro-batch is worked on.
    """

    def __init__(
        self,
        objective: Objective,
        part: Callable[[int], list[tuple[int, Tensors]]],
        steps: Iterable[int],
        num_workers: int,
        device: torch.device,
    ) -> None:
        def load(item: tuple[int, Tensors]) -> tuple[int, Tensors]:
            first, rows = item
            loaded = objective.load(rows)
            return first, tuple(t.pin_memory() for t in loaded) if device.type == "cuda" else loaded

        self._device = device
        self._moved: tuple[int, Tensors] | None = None  # the next one, on the device
        self._loaded = Prefetched(load, (item for step in steps for item in part(step)), num_workers)

    def __enter__(self) -> Self:
        self._loaded.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._loaded.__exit__(*error)

    def next(self) -> tuple[int, Tensors]:
        """The number of the next micro-batch's first row in its step's batch, and its loaded rows."""
        now = self._moved or self._move()
        self._moved = self._move() if self._device.type == "cuda" else None
        if now is None:
            raise StopIteration
        return now

    def _move(self) -> tuple[int, Tensors] | None:
        try:
            first, rows = next(self._loaded)
        except StopIteration:
            return None
        return first, tuple(tensor.to(self._device, non_blocking=True) for tensor in rows)
