"""Micro-batches in order, loaded ahead of time by threads, or by processes where pictures are decoded."""

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import torch
from torch.utils.data import DataLoader, Dataset

from mvar.data.prefetch import LOOKAHEAD, Prefetched
from mvar.errors import UserError
from mvar.training.contract import Objective, Tensors

Item = tuple[int, Tensors]  # the number of a micro-batch's first row, and its rows


class Feed:
    """The micro-batches of the given steps on the device, in order.

    With workers, `objective.load` runs ahead of time: in threads, or in processes of torch's DataLoader where it
    decodes pictures, whose Python code would keep the interpreter from the steps. What is random is drawn before that,
    in order, so the number of workers changes nothing. For a GPU what is loaded is pinned, and copied on a stream of
    its own: the host goes on, and the GPU copies while it still works on the micro-batch before.
    """

    def __init__(
        self,
        objective: Objective,
        part: Callable[[int], list[Item]],
        steps: Iterable[int],
        num_workers: int,
        device: torch.device,
    ) -> None:
        items = (item for step in steps for item in part(step))
        loads = _Loads(objective, pinned=device.type == "cuda")
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._threads = None
        if objective.decodes and num_workers:
            self._loaded = _by_processes(loads, items, num_workers)
        else:
            self._loaded = self._threads = Prefetched(loads.load, items, num_workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._threads:
            self._threads.__exit__(*error)
        self._loaded = iter(())  # lets processes go

    def next(self) -> Item:
        """The number of the next micro-batch's first row in its step's batch, and its loaded rows."""
        first, rows = next(self._loaded)
        if self._copies is None:
            return first, tuple(tensor.to(self._device) for tensor in rows)
        with torch.cuda.stream(self._copies):
            copied = tuple(tensor.to(self._device, non_blocking=True) for tensor in rows)
        working = torch.cuda.current_stream(self._device)
        working.wait_stream(self._copies)
        for tensor in copied:
            tensor.record_stream(working)  # else its memory would be the next copy's while it is worked on
        return first, copied


class _Loads(Dataset):
    """What a worker does."""

    def __init__(self, objective: Objective, pinned: bool) -> None:
        self._objective, self.pinned = objective, pinned

    def load(self, item: Item) -> Item:
        first, rows = item
        loaded = self._objective.load(rows)
        return first, tuple(t.pin_memory() for t in loaded) if self.pinned else loaded

    def __getitem__(self, item: Item) -> Item | UserError:
        try:
            return item[0], self._objective.load(item[1])  # pinned by the process that copies
        except UserError as error:  # torch would wrap a traceback around its line
            return error


def _by_processes(loads: _Loads, items: Iterator[Item], num_workers: int) -> Iterator[Item]:
    loader = DataLoader(
        loads,
        batch_size=None,  # items are micro-batches already
        sampler=items,
        num_workers=num_workers,
        prefetch_factor=LOOKAHEAD,
        pin_memory=loads.pinned,
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # torch draws a seed for the workers: not from the training's numbers
    )
    for found in loader:
        if isinstance(found, UserError):
            raise found
        yield found


def _leave_signals(number: int) -> None:
    """Whoever stops the training ends its workers; a signal that all of its processes get must not."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
