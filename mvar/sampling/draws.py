"""Tokens and codes from logits: one stream of random numbers an image, one number a token.

Shapes: `B` batch, `n` tokens of one scale, `V` codebook size.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

DRAW_GROUP = 64  # codes, or the largest power of two below it that divides the codebook


def balanced_labels(num_images: int, num_classes: int) -> Tensor:
    """Labels of a class-balanced set, interleaved: any prefix is balanced too, and so is any split of IS."""
    return torch.arange(num_images) % num_classes


def smooth_probabilities(logits: Tensor, gumbel: Tensor, ratio: float) -> Tensor:
    """The official `more_smooth`: a Gumbel-softmax over codes that sharpens with the scale (`ratio` 0 to 1)."""
    tau = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return ((logits * (1 + ratio) + gumbel) / tau).softmax(dim=-1)


class ImageStreams:
    """One stream of random numbers an image, so that an image does not depend on its batch.

    Numbers are made on the host. Those of all scales at once are the same as scale after scale, unless Gumbel noise is
    drawn between them.

    Args:
        seeds: an image's each.
    """

    def __init__(self, seeds: Sequence[int | tuple[int, ...]]) -> None:
        self._streams = [np.random.default_rng(seed) for seed in seeds]

    def uniform(self, count: int) -> Tensor:
        """`(B, count)` fp64 numbers in [0, 1)."""
        return torch.from_numpy(np.stack([s.random(count) for s in self._streams]))

    def gumbel(self, *shape: int) -> Tensor:
        """`(B, *shape)` fp64 standard Gumbel noise."""
        return torch.from_numpy(np.stack([s.gumbel(size=shape) for s in self._streams]))


def draw(logits: Tensor, uniform: Tensor, kept: Tensor | None = None) -> Tensor:
    """Tokens `(B, n)` from logits `(B, n, V)` and uniform numbers `(B, n)`, by inverting the cumulative distribution.

    From one number a token and summed in fp64, so that rounding (another batch size) all but never moves a draw. The
    running sum is taken over groups of codes, and then inside the group that it points to.

    Args:
        logits: of all codes.
        uniform: fp64, in [0, 1).
        kept: what a filter keeps of the logits (`Filter.kept`): only that is drawn; None for all codes.
    """
    weights = logits.softmax(dim=-1)
    if kept is not None:
        weights.mul_(_mask(logits, kept))
    size = math.gcd(logits.shape[-1], DRAW_GROUP)
    groups = weights.unflatten(-1, (-1, size))
    sums = groups.sum(dim=-1)
    group, inside = _invert(sums, uniform[..., None])
    chosen = groups.gather(-2, group[..., None].expand(*group.shape, size)).squeeze(-2)
    return (group * size + _invert(chosen, inside)[0]).squeeze(-1)


def _mask(logits: Tensor, kept: Tensor) -> Tensor:
    return kept if kept.dtype is torch.bool else logits >= kept


def only_kept(logits: Tensor, kept: Tensor | None) -> Tensor:
    """Logits `(B, n, V)`, -inf where a filter does not keep them (`Filter.kept`)."""
    if kept is None:
        return logits
    dropped = ~kept if kept.dtype is torch.bool else logits < kept
    return torch.where(dropped, -torch.inf, logits)


def are_kept(logits: Tensor, tokens: Tensor, kept: Tensor | None) -> Tensor:
    """Whether all tokens `(B, n)` that were drawn are codes that a filter keeps: not where it keeps none of some."""
    if kept is None:
        return torch.ones((), dtype=torch.bool, device=logits.device)
    index = tokens[..., None]
    if kept.dtype is torch.bool:
        return kept.gather(-1, index).all()
    return (logits.gather(-1, index) >= kept).all()


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where numbers `(..., 1)` in [0, 1) lie in the cumulative distribution of weights `(..., K)`: the index, whose
    weight is never 0, and how far inside it, in [0, 1)."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[..., -1:]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    # NaN has no place: inside the range it is a wrong draw, outside an error of the device that no one understands
    index = torch.searchsorted(cumulative, target, right=True).clamp_max_(weights.shape[-1] - 1)
    weight = weights.gather(-1, index).double()
    return index, ((target - cumulative.gather(-1, index) + weight) / weight).clamp_(0, 1)
