"""Scale-by-scale generation: guidance ramp, top-k and top-p, and a stream of random numbers for every image.

Shapes: `B` batch, `L` tokens of all scales, `n` tokens of one scale, `V` codebook size, `C` code channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mvar.checkpoints.weights import INFINITE, is_finite
from mvar.config import SampleConfig
from mvar.errors import UserError
from mvar.progress import Progress
from mvar.transformer import ScaleTransformer

if TYPE_CHECKING:
    from mvar.tokenizer.quantizer import ResidualQuantizer

DRAW_GROUP = 64  # codes, or the largest power of two below it that divides the codebook


@dataclass(frozen=True)
class Generated:
    """Tokens `(B, L)` int64, all scales, and the latent `(B, C, h, h)` that the tokenizer decodes."""

    tokens: Tensor
    latent: Tensor


def balanced_labels(num_images: int, num_classes: int) -> Tensor:
    """Labels of a class-balanced set, interleaved: any prefix is balanced too, and so is any split of IS."""
    return torch.arange(num_images) % num_classes


def guide(x: Tensor, cfg_scale: float, scale: int, num_scales: int) -> Tensor:
    """Classifier-free guidance with VAR's ramp: `(1 + t) cond - t uncond`, `t = cfg_scale * scale / (S - 1)`.

    The weights add up to 1. So guiding what the affine head is given yields the same as guiding its logits, as the
    official code does, with half the head's work. A single scale (where the official code divides by zero) gets the
    full guidance, as the last scale of any schedule does.

    Args:
        x: logits `(2B, n, V)` or the head's input `(2B, n, D)`, the conditional half first.
    """
    t = cfg_scale * _ramp(scale, num_scales)
    conditional, unconditional = x.chunk(2)
    return torch.lerp(unconditional, conditional, 1 + t)  # the same in one pass


def _ramp(scale: int, num_scales: int) -> float:
    return scale / (num_scales - 1) if num_scales > 1 else 1.0


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


def smooth_probabilities(logits: Tensor, gumbel: Tensor, ratio: float) -> Tensor:
    """The official `more_smooth`: a Gumbel-softmax over codes that sharpens with the scale (`ratio` 0 to 1)."""
    tau = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return ((logits * (1 + ratio) + gumbel) / tau).softmax(dim=-1)


class ImageStreams:
    """One stream of random numbers an image, so that an image does not depend on its batch."""

    def __init__(self, seeds: Sequence[int | tuple[int, ...]], device: torch.device) -> None:
        self._streams = [np.random.default_rng(seed) for seed in seeds]
        self._device = device

    def uniform(self, *shape: int) -> Tensor:
        """`(B, *shape)` fp64 numbers in [0, 1)."""
        return torch.from_numpy(np.stack([s.random(shape) for s in self._streams])).to(self._device)

    def gumbel(self, *shape: int) -> Tensor:
        """`(B, *shape)` fp64 standard Gumbel noise."""
        return torch.from_numpy(np.stack([s.gumbel(size=shape) for s in self._streams])).to(self._device)


def draw(logits: Tensor, uniform: Tensor, smallest: Tensor | None = None) -> Tensor:
    """Tokens `(B, n)` from logits `(B, n, V)` and uniform numbers `(B, n)`, by inverting the cumulative distribution.

    From one number a token and summed in fp64, so that rounding (another batch size) all but never moves a draw. The
    running sum is taken over groups of codes, and then inside the group that it points to.

    Args:
        logits: of all codes.
        uniform: fp64, in [0, 1).
        smallest: `(B, n, 1)`, codes below it are not drawn (`smallest_kept`); None for all codes.
    """
    weights = logits.softmax(dim=-1)
    if smallest is not None:
        weights.mul_(logits >= smallest)
    size = math.gcd(logits.shape[-1], DRAW_GROUP)
    groups = weights.unflatten(-1, (-1, size))
    sums = groups.sum(dim=-1)
    group, inside = _invert(sums, uniform[..., None])
    chosen = groups.gather(-2, group[..., None].expand(*group.shape, size)).squeeze(-2)
    return (group * size + _invert(chosen, inside)[0]).squeeze(-1)


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


@torch.no_grad()
def generate(
    model: ScaleTransformer,
    quantizer: "ResidualQuantizer",
    labels: Tensor,
    seeds: Sequence[int | tuple[int, ...]],
    config: SampleConfig,
    progress: Progress | None = None,
    on_logits: Callable[[int, Tensor], None] | None = None,
    on_latent: Callable[[int, Tensor], None] | None = None,
) -> Generated:
    """Draw one image for each label, coarse to fine, carrying every mixer's state.

    Args:
        model: the generator. It is run as it is: put it in `eval()` to switch drop path off.
        quantizer: of the tokenizer that it was trained on.
        labels: `(B,)` classes; `num_classes` draws without a class.
        seeds: B seeds, one an image (`numpy.random.default_rng` takes them): equal seeds give equal images.
        config: guidance, filters and smoothing.
        progress: called with (scales done, scales).
        on_logits: called at every scale with its number and the guided, unfiltered logits `(B, n, V)`.
        on_latent: called after every scale with its number and the latent so far `(B, C, h, h)`, which can be decoded.

    Raises:
        UserError: logits or latent are not finite; names the weights that are not. Looked at once, in the end.
    """
    schedule, space = model.schedule, model.space
    device = model.pos_1LC.device
    labels = labels.to(device)
    guided = config.cfg_scale > 0
    conditions = torch.cat((labels, torch.full_like(labels, space.num_classes))) if guided else labels
    streams = ImageStreams(seeds, device)
    side = schedule.sides[-1]
    dtype = quantizer.embedding.weight.dtype
    latent = torch.zeros(len(labels), space.code_channels, side, side, device=device, dtype=dtype)
    inputs = latent.new_empty(len(conditions), 0, space.code_channels)
    state, tokens, sums = None, [], []
    for scale, span in enumerate(schedule.steps()):
        guidance = partial(guide, cfg_scale=config.cfg_scale, scale=scale, num_scales=schedule.num_scales)
        logits, state = model(conditions, inputs, span, state, before_head=guidance if guided else None)
        sums.append(logits.sum(dtype=torch.float32))
        if on_logits:
            on_logits(scale, logits)
        smallest = smallest_kept(logits, config.top_k, config.top_p)
        tokens.append(draw(logits, streams.uniform(span.length), smallest))
        if config.more_smooth:
            logits = filter_logits(logits, config.top_k, config.top_p)
            noise = streams.gumbel(span.length, space.vocab_size).to(logits.dtype)
            weights = smooth_probabilities(logits, noise, _ramp(scale, schedule.num_scales))
            codes = weights @ quantizer.embedding.weight.to(weights.dtype)
        else:
            codes = quantizer.embed(tokens[-1])
        latent = quantizer.add(latent, codes.to(latent.dtype), scale)
        if on_latent:
            on_latent(scale, latent)
        if not span.is_last:
            inputs = quantizer.next_input(latent, scale + 1)
            inputs = torch.cat((inputs, inputs)) if guided else inputs
        if progress:
            progress(scale + 1, schedule.num_scales)
    if not torch.stack([*sums, latent.sum(dtype=torch.float32)]).isfinite().all():
        raise UserError(_why_not_finite(model, quantizer))
    return Generated(torch.cat(tokens, dim=1), latent)


def _why_not_finite(model: ScaleTransformer, quantizer: "ResidualQuantizer") -> str:
    for owner, module in (("generator", model), ("tokenizer", quantizer)):
        bad = [n for n, t in module.state_dict().items() if not n.endswith(INFINITE) and not is_finite(t)]
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            return (
                f"sampling: the {owner}'s weights are not finite (NaN or infinity) in {bad[0]}{more}; allowed: finite "
                "weights, as a training that did not diverge saves them"
            )
    return (
        "sampling: the generator's logits or the latent are not finite, though all weights are: numbers overflow on "
        "the way; allowed: weights of another training or checkpoint"
    )


def keep_best(
    draw: Callable[[list[tuple[int, ...]]], np.ndarray],
    score: Callable[[np.ndarray], np.ndarray],
    seeds: Sequence[tuple[int, ...]],
    candidates: int,
) -> np.ndarray:
    """Rejection sampling: of `candidates` images for each seed, the one with the highest score.

    Candidate j of an image has the seed `(*seed, j)`. Candidate 0 is the image that plain sampling draws (numpy pads
    seeds with zeros), so more candidates never lower a score. Of equal scores the first stays.

    Args:
        draw: one image a seed, `(B, ...)`.
        score: `(B,)` of such images, higher is better.
        seeds: B seeds of up to three numbers.
        candidates: how many images are drawn for one that is kept: the acceptance rate is `1 / candidates`.
    """
    best = draw([(*seed, 0) for seed in seeds])
    best_score = np.asarray(score(best))
    for number in range(1, candidates):
        images = draw([(*seed, number) for seed in seeds])
        scores = np.asarray(score(images))
        better = scores > best_score
        best = np.where(better.reshape(-1, *[1] * (images.ndim - 1)), images, best)
        best_score = np.where(better, scores, best_score)
    return best
