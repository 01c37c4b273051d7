"""The mixer `gdn`: a gated delta net over the concatenated scales, in raster order (arXiv:2412.06464).

Its layer as in the paper: queries, keys and values through a short convolution, queries and keys of unit length,
Mamba-2's decay for a head, heads normalised, gated by the token. Keys are as wide as attention's. Shapes: `B` batch,
`L` tokens of a span, `D` width, `H` heads, `P` head size, `V` value size.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mvar.config import Config, ModelConfig, RuntimeConfig
from mvar.kernels.causal_conv import causal_conv
from mvar.kernels.gated_delta import gated_delta_flops, gated_delta_rule
from mvar.kernels.gated_norm import norm_then_gate
from mvar.mixers.base import Mixer
from mvar.mixers.mamba import draw_decays
from mvar.scales import ScaleSchedule, Span


class GdnSettings(Config):
    """`gdn:2` or `gdn:expand=2` in a pattern, `model.gdn.expand=2` for every `gdn`."""

    expand: int = Field(default=1, ge=1, description="Width of all values, relative to the model's.")
    d_conv: int = Field(default=4, ge=2, description="Tokens that the causal convolution sees.")


class DeltaState(NamedTuple):
    """What the tokens so far left behind; its size does not depend on their number."""

    conv_tail: Tensor  # (B, d_conv - 1, channels), the convolution's last inputs
    held: Tensor  # (B, H, P, V), fp32 (fp64 in an fp64 model)


class GatedDeltaNet(Mixer):
    """Each token: `y = q S`, `S = a (I - b k k^T) S + b k v^T`: what was held at its key gives way to its value."""

    key = "gdn"
    cuts = ("state",)
    Settings = GdnSettings
    settings: GdnSettings
    examples = ("2,d_conv=2",)

    def __init__(self, config: ModelConfig, settings: GdnSettings, runtime: RuntimeConfig) -> None:
        super().__init__(config, settings, runtime)
        width, heads = config.width, config.num_heads
        values = settings.expand * width
        self.channels = 2 * width + values
        self.split = [self.channels, values, heads, heads]
        self.in_proj = nn.Linear(width, sum(self.split), bias=False)
        self.conv = nn.Parameter(torch.empty(self.channels, 1, settings.d_conv))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.norm = nn.Parameter(torch.ones(values // heads))
        self.proj = nn.Linear(values, width, bias=False)
        self.init_weights(math.sqrt(1 / (3 * width)))

    def forward(self, x: Tensor, span: Span, state: DeltaState | None = None) -> tuple[Tensor, DeltaState | None]:
        """See `Mixer.forward`."""
        tail, held = (None, None) if state is None else state
        width, heads = self.config.width, self.config.num_heads
        mixed, gate, step, beta = self.in_proj(x).split(self.split, -1)
        mixed, tail = causal_conv(mixed, self.conv, self.conv.new_zeros(self.channels), tail, activation="silu")
        dtype = torch.promote_types(mixed.dtype, torch.float32)  # a rounded decay is compounded over the sequence
        q, k, v = (
            part.unflatten(-1, (heads, -1)) for part in mixed.split([width, width, self.channels - 2 * width], -1)
        )
        q, k = (F.normalize(part.to(dtype), dim=-1) for part in (q, k))
        decay = -F.softplus(step.to(dtype) + self.dt_bias.to(dtype)) * self.A_log.to(dtype).exp()
        y, held = gated_delta_rule(
            q * (width // heads) ** -0.5, k, v, decay, beta.to(dtype).sigmoid(), held, need_state=not span.is_last
        )
        y = self.proj(norm_then_gate(y, gate, self.norm))
        return y, None if held is None else DeltaState(tail, held)

    def init_weights(self, std: float) -> None:
        """See `Mixer.init_weights`; decays as Mamba-2's, the output shrinks by `1 / sqrt(2 depth)`."""
        for weight, deviation in ((self.in_proj.weight, std), (self.conv, 0.02), (self.proj.weight, std)):
            nn.init.trunc_normal_(weight, std=deviation)
        draw_decays(self.A_log, self.dt_bias)
        with torch.no_grad():
            self.proj.weight.div_(math.sqrt(2 * self.config.depth))
            self.norm.fill_(1)

    @classmethod
    def visible(cls, settings: GdnSettings, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """See `Mixer.visible`: itself and all tokens before it, in raster order."""
        return np.tri(schedule.num_tokens, dtype=np.bool_)

    @classmethod
    def num_params(cls, config: ModelConfig, settings: GdnSettings) -> int:
        """See `Mixer.num_params`: projections, convolution, two numbers a head, the norm's weight."""
        width, heads, values = config.width, config.num_heads, settings.expand * config.width
        projections = width * (2 * width + 3 * values + 2 * heads)
        return projections + settings.d_conv * (2 * width + values) + 2 * heads + values // heads

    @classmethod
    def flops(cls, config: ModelConfig, settings: GdnSettings, span: Span) -> int:
        """See `Mixer.flops`: projections, convolution, and the products of the chunks (`gated_delta_flops`)."""
        width, heads, values = config.width, config.num_heads, settings.expand * config.width
        token = width * (2 * width + 3 * values + 2 * heads) + settings.d_conv * (2 * width + values)
        return 2 * token * span.length + gated_delta_flops(
            span.length,
            heads,
            width // heads,
            values // heads,
            has_state=span.first > 0,
            need_state=not span.is_last,
        )

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: GdnSettings, span: Span) -> int:
        """See `Mixer.score_cells`: none, there is no softmax."""
        return 0

    @classmethod
    def state_bytes(
        cls, config: ModelConfig, settings: GdnSettings, schedule: ScaleSchedule, element_bytes: int
    ) -> int:
        """See `Mixer.state_bytes`: S in fp32 and the convolution's tail, whatever the schedule."""
        width, values = config.width, settings.expand * config.width
        held = 4 * (width // config.num_heads) * values
        return held + element_bytes * (settings.d_conv - 1) * (2 * width + values)
