"""Scale-by-scale generation: the one loop that draws images, whatever the form of guidance and the filter.

Random numbers are copied to the device once, before the first scale (`more_smooth` aside); from there on nothing waits
for it, until the result is checked.

Shapes: `B` batch, `L` tokens of all scales, `n` tokens of one scale, `V` codebook size, `C` code channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from mvar.checkpoints.weights import INFINITE, is_finite
from mvar.config import SampleConfig
from mvar.errors import UserError
from mvar.progress import Progress
from mvar.sampling.draws import ImageStreams, are_kept, draw, only_kept, smooth_probabilities
from mvar.sampling.guidance.contract import position
from mvar.sampling.methods import guidance_weights, kept_by
from mvar.transformer import ScaleTransformer

if TYPE_CHECKING:
    from mvar.tokenizer.quantizer import ResidualQuantizer


def _is_sound() -> None:
    """Nothing to look at."""


@dataclass(frozen=True)
class Generated:
    """Tokens `(B, L)` int64, all scales, and the latent `(B, C, h, h)` that the tokenizer decodes.

    `check` waits for the device and raises what `generate` does; where that was not asked to check, its caller does.
    """

    tokens: Tensor
    latent: Tensor
    check: Callable[[], None] = _is_sound

    def _checked(self, now: bool) -> Self:
        if now:
            self.check()
        return self


def guide(x: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: `(1 + t) cond - t uncond`, t the weight.

    The two factors add up to 1. So guiding what the affine head is given yields the same as guiding its logits, as the
    official code does, with half the head's work.

    Args:
        x: logits `(2B, n, V)` or the head's input `(2B, n, D)`, the conditional half first.
        weight: as the form of guidance has it for a scale (`mvar.sampling.guidance`).
    """
    conditional, unconditional = x.chunk(2)
    return torch.lerp(unconditional, conditional, 1 + weight)  # the same in one pass


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
    prefix: Tensor | None = None,
    check: bool = True,
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
        prefix: `(B, n)` tokens of whole coarsest scales: given; the rest is drawn as of an image that begins so itself.
        check: False: the caller looks at the result (`Generated.check`), having decoded it.

    Raises:
        UserError: a method of the user's own that breaks its contract; logits or latent that are not finite.
    """
    schedule, device = model.schedule, model.pos_1LC.device
    strengths, filtered = guidance_weights(config, schedule.num_scales), kept_by(config, schedule.num_scales)
    given = [] if prefix is None else given_scales(model, prefix, len(labels))
    streams = ImageStreams(seeds, device, 0 if config.more_smooth else schedule.num_tokens)
    steps = _Steps(model, labels.to(device), strengths)
    side, codebook = schedule.sides[-1], quantizer.embedding.weight
    latent = torch.zeros(len(labels), model.space.code_channels, side, side, device=device, dtype=codebook.dtype)
    tokens, sums, sound = [], [], []
    for scale, span in enumerate(schedule.steps()):
        steps.see(quantizer.next_input(latent, scale) if scale else latent.new_empty(len(labels), 0, latent.shape[1]))
        numbers = streams.uniform(span.length)  # of a given scale too: the others keep theirs
        if scale < len(given):
            tokens.append(given[scale])
        else:
            logits = steps.logits(scale)
            sums.append(logits.sum(dtype=torch.float32))
            if on_logits:
                on_logits(scale, logits)
            kept = filtered(scale, logits)
            tokens.append(draw(logits, numbers, kept))
            sound.append(are_kept(logits, tokens[-1], kept))
        codes = quantizer.embed(tokens[-1])
        if config.more_smooth and scale >= len(given):
            codes = _smooth_codes(only_kept(logits, kept), streams, codebook, position(scale, schedule.num_scales))
        latent = quantizer.add(latent, codes.to(latent.dtype), scale)
        if on_latent:
            on_latent(scale, latent)
        if progress:
            progress(scale + 1, schedule.num_scales)
    look = partial(_check_drawn, model, quantizer, config, [*sums, latent.sum(dtype=torch.float32)], sound)
    return Generated(torch.cat(tokens, dim=1), latent, look)._checked(check)


class _Steps:
    """The model scale by scale: what it has not seen yet, and the state that it has left.

    Args:
        model: the generator.
        labels: `(B,)` classes, on its device.
        strengths: of guidance, scale by scale; all 0: the half without a class is not run.
    """

    def __init__(self, model: ScaleTransformer, labels: Tensor, strengths: Sequence[float]) -> None:
        self._model, self._strengths, self._guided = model, strengths, any(strengths)
        classless = torch.full_like(labels, model.space.num_classes)
        self._conditions = torch.cat((labels, classless)) if self._guided else labels
        self._unseen: list[Tensor] = []
        self._state: Any = None

    def see(self, inputs: Tensor) -> None:
        """The inputs `(B, n, C)` of the next scale; of the first there are none."""
        self._unseen.append(torch.cat((inputs, inputs)) if self._guided else inputs)

    def logits(self, scale: int) -> Tensor:
        """Guided logits `(B, n, V)` of a scale, whose inputs were seen last; scales that were given are run with it."""
        span = self._model.schedule.span(scale + 1 - len(self._unseen), scale + 1)
        guidance = partial(guide, weight=self._strengths[scale]) if self._guided else None
        inputs, self._unseen = torch.cat(self._unseen, 1), []
        logits, self._state = self._model(self._conditions, inputs, span, self._state, before_head=guidance)
        return logits[:, -span.schedule.lengths[scale] :]


def given_scales(model: ScaleTransformer, prefix: Tensor, count: int) -> list[Tensor]:
    """Tokens that are given, `(B, n)`, scale by scale, on the model's device.

    Raises:
        UserError: not as many images, not whole scales, or codes that there are not.
    """
    offsets, size = model.schedule.offsets, model.space.vocab_size
    if prefix.ndim != 2 or len(prefix) != count or prefix.shape[1] not in offsets:
        allowed = f"({count}, n) with n one of {', '.join(map(str, offsets))}, the tokens of whole scales"
        raise UserError(f"prefix: {tuple(prefix.shape)}; allowed: {allowed}")
    if prefix.numel() and not 0 <= int(prefix.min()) <= int(prefix.max()) < size:
        raise UserError(f"prefix: codes {int(prefix.min())} to {int(prefix.max())}; allowed: 0 to {size - 1}")
    lengths = model.schedule.lengths[: offsets.index(prefix.shape[1])]
    return list(prefix.long().to(model.pos_1LC.device).split(lengths, 1))


def _smooth_codes(logits: Tensor, streams: ImageStreams, codebook: Tensor, ratio: float) -> Tensor:
    """`more_smooth`: mixtures `(B, n, C)` of the codes that are left of logits `(B, n, V)`."""
    noise = streams.gumbel(*logits.shape[1:]).to(logits.dtype)
    weights = smooth_probabilities(logits, noise, ratio)
    return weights @ codebook.to(weights.dtype)


def _check_drawn(
    model: ScaleTransformer,
    quantizer: "ResidualQuantizer",
    config: SampleConfig,
    sums: list[Tensor],
    kept: list[Tensor],
) -> None:
    """Refuse images of sums that are not finite, and tokens that a filter does not keep."""
    if not torch.stack(sums).isfinite().all():
        raise UserError(_why_not_finite(model, quantizer))
    if kept and not torch.stack(kept).all():
        raise UserError(f"sample.filter: {config.filter} keeps no code of some token; allowed: one or more of each")


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
