"""Top-k and then top-p, as the official code has them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.config import SampleConfig
from mvar.sampling.filters.contract import Filter


class Top(Filter):
    """The `top_k` likeliest codes, of those the likeliest whose probability adds up to `top_p` (`filter_logits`)."""

    def kept(
        self, logits: Tensor, scale: int, num_scales: int, sample: SampleConfig, settings: Any = None
    ) -> Tensor | None:
        """As `Filter.kept`."""
        return smallest_kept(logits, sample.top_k, sample.top_p)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Mask logits `(..., V)` to -inf as the official code does: top-k first, then top-p; 0 turns either off.

    Every value equal to the k-th largest stays, so ties keep more than k. Top-p drops, in ascending order, what adds
    up to no more than `1 - top_p`; the largest value always stays. Values equal to the smallest kept one stay too (in
    the official code an unstable sort decides which of them).
    """
    smallest = smallest_kept(logits, top_k, top_p)
    return logits if smallest is None else torch.where(logits < smallest, -torch.inf, logits)


def smallest_kept(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor | None:
    """The smallest of the logits `(..., V)` that `filter_logits` keeps, `(..., 1)`; None where it keeps all."""
    num_codes = logits.shape[-1]
    top_k = top_k if 0 < top_k < num_codes else num_codes
    if top_k == num_codes and not 0 < top_p < 1:
        return None
    ascending = _largest(logits, top_k)
    smallest = ascending[..., :1].contiguous()
    if 0 < top_p < 1:
        weights = ascending.softmax(dim=-1)
        ties = _count(logits == smallest) - _count(ascending == smallest)
        sums = weights.cumsum(dim=-1) + ties * weights[..., :1]
        # sums ascend: the number of those that are not above a bound is where the bound belongs
        num_dropped = torch.searchsorted(sums, (1 - top_p) * sums[..., -1:], right=True)
        smallest = ascending.gather(-1, num_dropped.clamp_max(top_k - 1))
    return smallest


def _count(mask: Tensor) -> Tensor:
    """How many are true, `(..., 1)`; on a CPU torch first makes 8-byte integers of all."""
    if mask.is_cuda:
        return mask.sum(-1, keepdim=True)
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=-1, keepdims=True))


def _largest(logits: Tensor, count: int) -> Tensor:
    """The `count` largest values, ascending; on a CPU numpy takes a fourth of the time of torch for it."""
    if logits.is_cuda or logits.dtype not in (torch.float32, torch.float64):
        return logits.topk(count, dim=-1).values.flip(-1)
    values = logits.detach().numpy()
    if count < values.shape[-1]:
        values = np.partition(values, -count, axis=-1)[..., -count:]
    return torch.from_numpy(np.sort(values, axis=-1))
