"""A form of guidance and a filter of one's own: guidance that sets in late, and locally typical sampling.

mvar run mixers --plugin examples/guidance.py --preset smoke --set sample.guidance=cosine sample.filter=typical
"""

import math

from pydantic import Field

import mvar


@mvar.register("guidance", "cosine")
class Cosine(mvar.Guidance):
    """From 0 at the first scale to `cfg_scale` at the last along a cosine: `sample.cosine.power=3` sets in later."""

    class Settings(mvar.Config):
        """Part of an evaluation's id where it uses this form, and only where they differ from these."""

        power: float = Field(default=1.0, gt=0, description="Of the position along the scales; above 1: later.")

    def weight(self, scale, num_scales, cfg_scale, settings):
        """The t of a scale."""
        position = scale / max(num_scales - 1, 1)
        return cfg_scale * (1 - math.cos(math.pi * position**settings.power)) / 2


@mvar.register("filter", "typical")
class Typical(mvar.Filter):
    """Codes whose surprise is nearest to the expected one (Meister et al., arXiv:2202.00666); no top-k, no top-p."""

    class Settings(mvar.Config):
        """`sample.typical.p=0.9`."""

        p: float = Field(default=0.95, gt=0, le=1, description="Probability that the codes add up to.")

    def kept(self, logits, scale, num_scales, sample, settings):
        """Which codes may be drawn, a mask `(B, n, V)`: the likeliest may be missing, so it is no bound."""
        logs = logits.log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1, keepdim=True)
        distance, order = (-logs - entropy).abs().sort(-1)
        before = logs.exp().gather(-1, order).cumsum(-1).roll(1, -1)
        before[..., 0] = 0  # what is kept before the first: nothing
        last = (before < settings.p).sum(-1, keepdim=True) - 1
        return (-logs - entropy).abs() <= distance.gather(-1, last)
