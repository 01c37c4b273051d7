"""The mixer `linear`: block-causal linear attention, whose state is a sum over tokens.

Katharopoulos et al. (arXiv:2006.16236) with their feature map, causal by scale as VAR's attention is, and divided by
the sum of weights as in LINA (arXiv:2601.22630). Shapes: `B` batch, `L` tokens of a span, `D` width, `H` heads, `P`
head size.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mvar.config import ModelConfig
from mvar.mixers.scale_attention import ScaleAttention
from mvar.scales import ScaleSchedule, Span


class LinearAttention(ScaleAttention):
    """Each token of scale k: `sum_j f(q) f(k_j) v_j / sum_j f(q) f(k_j)` over scales 0..k, with `f(x) = elu(x) + 1`.

    State: `sum_j f(k_j) [v_j, 1]`, `(B, H, P, P + 1)`, in fp32 at least, whatever the number of tokens.
    """

    cuts = ("state",)

    def forward(self, x: Tensor, span: Span, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See `Mixer.forward`."""
        dtype = torch.promote_types(x.dtype, torch.float32)  # sums over a whole image
        q, k, v = (part.to(dtype) for part in self.project(x))
        lengths, outputs = [span.schedule.lengths[scale] for scale in span.scales], []
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = F.elu(q) + 1, F.elu(k) + 1, F.pad(v, (0, 1), value=1.0)
            for queries, keys, values in zip(*(part.split(lengths, 2) for part in (q, k, v)), strict=True):
                written = keys.mT @ values
                state = written if state is None else state + written
                sums = queries @ state
                outputs.append(sums[..., :-1] / sums[..., -1:])
        return self.merge(torch.cat(outputs, 2).to(x.dtype)), None if span.is_last else state

    @classmethod
    def visible(cls, settings: None, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """See `Mixer.visible`: the own scale and all coarser ones."""
        levels = np.array(schedule.levels)
        return levels[:, None] >= levels

    @classmethod
    def flops(cls, config: ModelConfig, settings: None, span: Span) -> int:
        """See `Mixer.flops`: four projections, and each token written to the state and read from it."""
        head = config.width // config.num_heads
        return 8 * span.length * config.width**2 + 4 * span.length * config.width * (head + 1)

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: None, span: Span) -> int:
        """See `Mixer.score_cells`: none, no pair is formed."""
        return 0

    @classmethod
    def state_bytes(cls, config: ModelConfig, settings: None, schedule: ScaleSchedule, element_bytes: int) -> int:
        """See `Mixer.state_bytes`: the sums in fp32, whatever the schedule."""
        return 4 * config.width * (config.width // config.num_heads + 1)
