"""A mixer of one's own: attention over the last `w` scales, in a pattern `recent:2`. Its state forgets older scales.

mvar check examples/mixer.py
mvar run mixers --plugin examples/mixer.py --set model.pattern=recent:2
"""

import numpy as np
import torch
from pydantic import Field

import mvar


@mvar.register("mixer", "recent")
class Recent(mvar.ScaleAttention):  # has projections, `init_weights`, `num_params`, `flops`; `mvar.Mixer` has nothing
    """Attention over a token's own scale and the `w - 1` before it. State: keys and values of the last `w - 1`."""

    examples = "1", "3"  # settings that are checked beside the defaults
    cuts = ("keys",)  # its keys can be cut by `mvar knockout`: `self.attend` heeds what is

    class Settings(mvar.Config):
        """`recent:3` or `recent:w=3` in a pattern, `model.recent.w=3` for every `recent`."""

        w: int = Field(default=2, ge=1, description="Scales that a token sees, its own included.")

    def forward(self, x, span, state=None):
        """Teacher forcing (all scales, no state) and sampling (one scale, the state of the coarser ones) in one."""
        lengths, starts = [span.schedule.lengths[scale] for scale in span.scales], span.schedule.offsets
        queries, keys, values = (t.split(lengths, dim=2) for t in self.project(x))  # (B, H, tokens, head_dim) a scale
        known = [*(state or []), *zip(keys, values, strict=True)]
        outputs = []
        for end, q in enumerate(queries, start=len(known) - len(queries) + 1):
            seen = known[max(0, end - self.settings.w) : end]
            k, v = (torch.cat(parts, dim=2) for parts in zip(*seen, strict=True))
            at = span.first + len(outputs)  # the scale of these queries
            outputs.append(self.attend(q, k, v, starts[at], starts[at + 1 - len(seen)]))
        y = self.merge(torch.cat(outputs, dim=2))
        if span.is_last:
            return y, None
        kept = known[max(0, len(known) - self.settings.w + 1) :]
        return y, [(k.clone(), v.clone()) for k, v in kept]  # a view would keep every scale's projections alive

    @classmethod
    def visible(cls, settings, schedule):
        """`(L, L)`: which tokens (columns) a token (row) sees."""
        scale = np.array(schedule.levels)
        back = scale[:, None] - scale
        return (back >= 0) & (back < settings.w)

    @classmethod
    def score_cells(cls, config, settings, span):
        """Query-key pairs of one head."""
        n = span.schedule.lengths
        return sum(n[i] * sum(n[max(0, i + 1 - settings.w) : i + 1]) for i in span.scales)

    @classmethod
    def state_bytes(cls, config, settings, schedule, element_bytes):
        """At the peak: keys and values of the `w - 1` scales before the last."""
        return 2 * sum(schedule.lengths[-settings.w : -1]) * config.width * element_bytes
