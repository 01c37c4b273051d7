"""How fast a training goes: tokens a second, the share of the device's rate that it reaches, its peak memory."""

from typing import Protocol

import torch

MIB = 2**20


class Work(Protocol):
    """What says how much work a step is."""

    tokens: int
    flops: int

    @property
    def encoding_flops(self) -> int: ...


def throughput(
    work: Work,
    seconds: float,
    device: torch.device,
    rate: float | None,
    processes: int,
    encoding_rate: float | None = None,
) -> dict[str, float]:
    """Values of a metrics row; what cannot be told of a device is left out.

    Args:
        work: of a step of all processes.
        seconds: of a step.
        device: of this process.
        rate: FLOP/s of the device at best, by `cards.rate_of`; None: it is not known.
        processes: that share a step, on devices of one kind.
        encoding_rate: FLOP/s at best of encoding images, where that is a part of those seconds.
    """
    row: dict[str, float] = {}
    if work.tokens and seconds > 0:
        row["train/tokens_per_s"] = work.tokens / seconds
    if rate and work.flops and seconds > 0:
        at_best = work.flops / rate + (work.encoding_flops / encoding_rate if encoding_rate else 0)
        row["train/mfu"] = at_best / (seconds * processes)
    if device.type == "cuda":
        row["train/peak_mib"] = torch.cuda.max_memory_allocated(device) / MIB
    return row
