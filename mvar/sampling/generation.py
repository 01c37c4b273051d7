"""Scale-by-scale generation: the one loop that draws images, whatever the form of guidance and the filter.

Labels and random numbers are copied to the device in one piece, before the first scale (`more_smooth` aside); from
there on nothing waits for it, until the result is checked. What a scale does is in `drawing`, and how that is replayed
in `graphs`.

Shapes: `B` batch, `L` tokens of all scales, `n` tokens of one scale, `V` codebook size, `C` code channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from mvar.checkpoints.weights import INFINITE, is_finite
from mvar.config import SampleConfig
from mvar.errors import UserError
from mvar.progress import Progress
from mvar.sampling.drawing import Drawing
from mvar.sampling.draws import ImageStreams
from mvar.sampling.graphs import Graphs
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
    graphs: Graphs | None = None,
) -> Generated:
    """Draw one image for each label, coarse to fine, carrying every mixer's state.

    Args:
        model: the generator. It is run as it is: put it in `eval()` to switch drop path off.
        quantizer: of the tokenizer that it was trained on.
        labels: `(B,)` classes; `num_classes` draws without a class.
        seeds: B seeds, one an image (`numpy.random.default_rng` takes them): equal seeds give equal images.
        config: guidance, filters, smoothing and precision.
        progress: called with (scales done, scales).
        on_logits: called at every scale with its number and the guided, unfiltered logits `(B, n, V)`.
        on_latent: called after every scale with its number and the latent so far `(B, C, h, h)`, which can be decoded.
        prefix: `(B, n)` tokens of whole coarsest scales: given; the rest is drawn as of an image that begins so itself.
        check: False: the caller looks at the result (`Generated.check`), having decoded it.
        graphs: what was recorded of earlier batches, to be replayed for this one where it is like them.

    Raises:
        UserError: a method of the user's own that breaks its contract; logits or latent that are not finite.
    """
    given = [] if prefix is None else given_scales(model, prefix, len(labels))
    if graphs and not given and not on_logits and not config.more_smooth:
        drawing, steps = graphs.drawing(model, quantizer, len(labels), config)
    else:
        drawing, steps = Drawing(model, quantizer, len(labels), config, once=True), None
    drawing.begin(labels, ImageStreams(seeds), given)
    count = model.schedule.num_scales
    with drawing.casting():
        for scale in range(count):
            if steps:
                steps[scale]()
            else:
                drawing.step(scale, on_logits)
            if on_latent:
                on_latent(scale, drawing.latent.clone())
            if progress:
                progress(scale + 1, count)
    found = (drawing.tokens, drawing.latent, drawing.sums, drawing.sound)
    # the next batch is written where this one is, if it is drawn there
    tokens, latent, sums, sound = (t.clone() for t in found) if graphs else found
    return Generated(tokens, latent, partial(_check_drawn, model, quantizer, config, sums, sound))._checked(check)


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


def _check_drawn(
    model: ScaleTransformer,
    quantizer: "ResidualQuantizer",
    config: SampleConfig,
    sums: Tensor,
    sound: Tensor,
) -> None:
    """Refuse images of sums that are not finite, and tokens that a filter does not keep."""
    if not sums.isfinite().all():
        raise UserError(_why_not_finite(model, quantizer))
    if not sound.all():
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
