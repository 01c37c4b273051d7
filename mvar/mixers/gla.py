"""The mixer `gla`: gated linear attention over the concatenated scales, in raster order (arXiv:2312.06635).

Its layer as in the paper: keys half as wide as values, a decay for every channel of a key from a projection of low
rank, heads normalised, gated by the token. Shapes: `B` batch, `L` tokens of a span, `D` width, `H` heads, `K` key size,
`P` head size.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mvar.config import Config, ModelConfig, RuntimeConfig
from mvar.kernels.gated_linear import gated_linear_attention, gated_linear_flops
from mvar.kernels.gated_norm import norm_then_gate
from mvar.mixers.base import Mixer
from mvar.scales import ScaleSchedule, Span

SLOWNESS = 16  # the paper's tau: a gate's log-sigmoid is divided by it, so that heads begin with a long memory


class GlaSettings(Config):
    """`gla:32` or `gla:rank=32` in a pattern, `model.gla.rank=32` for every `gla`."""

    rank: int = Field(default=16, ge=1, description="Of the projection that the decays come from.")


def _sizes(config: ModelConfig) -> tuple[int, int, int]:
    """H, K and P."""
    head = config.width // config.num_heads
    return config.num_heads, max(1, head // 2), head


class GatedLinearAttention(Mixer):
    """Each token: `y = q S`, `S = diag(a) S + k v^T`, with `a = sigmoid(gate)^(1/16)` of its own.

    State: S, `(B, H, K, P)`, in fp32 at least, whatever the number of tokens.
    """

    key = "gla"
    cuts = ("state",)
    Settings = GlaSettings
    settings: GlaSettings
    examples = ("4",)

    def __init__(self, config: ModelConfig, settings: GlaSettings, runtime: RuntimeConfig) -> None:
        super().__init__(config, settings, runtime)
        width, (heads, keys, head) = config.width, _sizes(config)
        self.split = [heads * keys, heads * keys, width, width, settings.rank]
        self.in_proj = nn.Linear(width, sum(self.split), bias=False)
        self.decay = nn.Linear(settings.rank, heads * keys)
        self.norm = nn.Parameter(torch.ones(head))
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, span: Span, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See `Mixer.forward`."""
        heads, keys, _ = _sizes(self.config)
        q, k, v, gate, decay = self.in_proj(x).split(self.split, -1)
        decay = self.decay(decay)
        decay = F.logsigmoid(decay.to(torch.promote_types(decay.dtype, torch.float32))) / SLOWNESS
        q, k, v, decay = (part.unflatten(-1, (heads, -1)) for part in (q * keys**-0.5, k, v, decay))
        y, state = gated_linear_attention(q, k, v, decay, state, need_state=not span.is_last)
        return self.proj(norm_then_gate(y, gate, self.norm)), state

    def init_weights(self, std: float) -> None:
        """See `Mixer.init_weights`; the output shrinks by `1 / sqrt(2 depth)`."""
        for weight in (self.in_proj.weight, self.decay.weight, self.proj.weight):
            nn.init.trunc_normal_(weight, std=std)
        with torch.no_grad():
            self.proj.weight.div_(math.sqrt(2 * self.config.depth))
            self.decay.bias.zero_()
            self.norm.fill_(1)

    @classmethod
    def visible(cls, settings: GlaSettings, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """See `Mixer.visible`: itself and all tokens before it, in raster order."""
        return np.tri(schedule.num_tokens, dtype=np.bool_)

    @classmethod
    def num_params(cls, config: ModelConfig, settings: GlaSettings) -> int:
        """See `Mixer.num_params`."""
        width, (heads, keys, head) = config.width, _sizes(config)
        projected = 2 * heads * keys + 3 * width + settings.rank
        return width * projected + (settings.rank + 1) * heads * keys + head

    @classmethod
    def flops(cls, config: ModelConfig, settings: GlaSettings, span: Span) -> int:
        """See `Mixer.flops`: the projections, and the products of the chunks (`gated_linear_flops`)."""
        width, (heads, keys, head) = config.width, _sizes(config)
        projected = 2 * heads * keys + 3 * width + settings.rank
        token = width * projected + settings.rank * heads * keys
        return 2 * token * span.length + gated_linear_flops(
            span.length, heads, keys, head, has_state=span.first > 0, need_state=not span.is_last
        )

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: GlaSettings, span: Span) -> int:
        """See `Mixer.score_cells`: none, there is no softmax."""
        return 0

    @classmethod
    def state_bytes(
        cls, config: ModelConfig, settings: GlaSettings, schedule: ScaleSchedule, element_bytes: int
    ) -> int:
        """See `Mixer.state_bytes`: S in fp32, whatever the schedule."""
        heads, keys, head = _sizes(config)
        return 4 * heads * keys * head
