"""Mamba-2 as a mixer: a causal state-space scan over the concatenated scales, in raster order.

Parameter names and shapes are those of the official Mamba-2 module (Dao & Gu 2024, arXiv:2405.21060), so that M-VAR's
checkpoints load as they are. Shapes: `B` batch, `L` tokens, `D` width, `H` heads, `P` head size, `N` SSM state.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mvar.config import MambaConfig, ModelConfig, RuntimeConfig
from mvar.kernels.causal_conv import causal_conv
from mvar.kernels.gated_norm import gated_rms_norm
from mvar.kernels.scan import ssd_flops, ssd_scan
from mvar.mixers.base import Mixer
from mvar.scales import ScaleSchedule, Span


class Mamba2State(NamedTuple):
    """What the tokens so far left behind; its size does not depend on their number."""

    conv_tail: Tensor  # (B, d_conv - 1, channels), the convolution's last inputs
    ssm: Tensor  # (B, H, P, N), fp32 (fp64 in an fp64 model)


class Sizes(NamedTuple):
    """Sizes of a Mamba-2 mixer, derived from the config and its settings."""

    inner: int  # expand * D = H * P
    heads: int  # H
    channels: int  # of the convolution: x, B and C
    projected: int  # of in_proj: z, x, B, C and dt

    @classmethod
    def of(cls, config: ModelConfig, settings: MambaConfig) -> "Sizes":
        """The sizes that a config asks for."""
        inner = settings.expand * config.width
        heads = inner // settings.headdim
        channels = inner + 2 * settings.d_state
        return cls(inner, heads, channels, inner + channels + heads)


class GatedRMSNorm(nn.Module):
    """`gated_rms_norm` and its weight."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate `y` by `z` and normalise, both `(B, L, H * P)`; the result has the dtype of `z`."""
        return gated_rms_norm(y, z, self.weight, self.eps)


class OfficialConv(nn.Conv1d):
    """Holds the convolution's parameters under their official names; `causal_conv` does the work."""

    bias: nn.Parameter


class Mamba2(Mixer):
    """Mamba-2 with one group, a gated RMSNorm and no projection biases, as M-VAR's inter-scale mixer."""

    key = "mamba"
    cuts = ("state",)
    Settings = MambaConfig
    settings: MambaConfig

    def __init__(self, config: ModelConfig, settings: MambaConfig, runtime: RuntimeConfig) -> None:
        super().__init__(config, settings, runtime)
        sizes = Sizes.of(config, settings)
        self.sizes = sizes
        self.in_proj = nn.Linear(config.width, sizes.projected, bias=False)
        self.conv1d = OfficialConv(sizes.channels, sizes.channels, settings.d_conv, groups=sizes.channels)
        self.dt_bias = nn.Parameter(torch.empty(sizes.heads))
        self.A_log = nn.Parameter(torch.empty(sizes.heads))
        self.D = nn.Parameter(torch.empty(sizes.heads))
        self.norm = GatedRMSNorm(sizes.inner)
        self.out_proj = nn.Linear(sizes.inner, config.width, bias=False)
        self.init_weights(math.sqrt(1 / (3 * config.width)))

    def forward(self, x: Tensor, span: Span, state: Mamba2State | None = None) -> tuple[Tensor, Mamba2State | None]:
        """Scan the span's tokens `(B, L, D)` on from the state that the coarser scales left."""
        tail, ssm = (None, None) if state is None else state
        sizes, n = self.sizes, self.settings.d_state
        z, xbc, dt = self.in_proj(x).split([sizes.inner, sizes.channels, sizes.heads], dim=-1)
        xbc, tail = causal_conv(xbc, self.conv1d.weight, self.conv1d.bias, tail, activation="silu")
        inputs, b, c = xbc.split([sizes.inner, n, n], dim=-1)
        # Steps and decays in fp32: a rounded decay is compounded over the sequence.
        dtype = torch.promote_types(dt.dtype, torch.float32)
        dt = F.softplus(dt.to(dtype) + self.dt_bias.to(dtype))
        y, ssm = ssd_scan(
            inputs.unflatten(-1, (sizes.heads, -1)),
            dt,
            -torch.exp(self.A_log.to(dtype)),
            b,
            c,
            self.D.to(dtype),
            ssm,
            backend=self.runtime.scan_backend,
            need_state=not span.is_last,
        )
        y = self.out_proj(self.norm(y.flatten(-2), z))
        return y, None if ssm is None else Mamba2State(tail, ssm)

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        """Official M-VAR: truncated normals for the matrices, Mamba-2's own draw for the decays.

        The convolution gets a standard deviation of 0.02; `A` is uniform in [1, 16] and `softplus(dt_bias)`
        log-uniform in [1e-3, 0.1].
        """
        for weight, deviation in ((self.in_proj.weight, std), (self.conv1d.weight, 0.02), (self.out_proj.weight, std)):
            nn.init.trunc_normal_(weight, std=deviation)
        nn.init.zeros_(self.conv1d.bias)
        self.A_log.uniform_(1, 16).log_()
        dt = self.dt_bias.uniform_(math.log(1e-3), math.log(0.1)).exp_().clamp_(min=1e-4)
        dt.add_(torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm.weight)

    @classmethod
    def visible(cls, settings: MambaConfig, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """Itself and all tokens before it, in raster order."""
        return np.tri(schedule.num_tokens, dtype=np.bool_)

    @classmethod
    def num_params(cls, config: ModelConfig, settings: MambaConfig) -> int:
        """Both projections, the convolution, the norm's weight, and three numbers a head."""
        sizes = Sizes.of(config, settings)
        projections = config.width * (sizes.projected + sizes.inner)
        return projections + sizes.channels * (settings.d_conv + 1) + sizes.inner + 3 * sizes.heads

    @classmethod
    def flops(cls, config: ModelConfig, settings: MambaConfig, span: Span) -> int:
        """Projections, convolution and the scan's matrix products at the scan's own chunk size (`ssd_flops`)."""
        sizes = Sizes.of(config, settings)
        token = config.width * (sizes.projected + sizes.inner) + settings.d_conv * sizes.channels
        scan = ssd_flops(
            span.length,
            sizes.heads,
            settings.headdim,
            settings.d_state,
            has_state=span.first > 0,
            need_state=not span.is_last,
        )
        return 2 * token * span.length + scan

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: MambaConfig, span: Span) -> int:
        """None: there is no attention."""
        return 0

    @classmethod
    def state_bytes(
        cls, config: ModelConfig, settings: MambaConfig, schedule: ScaleSchedule, element_bytes: int
    ) -> int:
        """The SSM state in fp32 and the convolution's tail, whatever the schedule."""
        sizes = Sizes.of(config, settings)
        return 4 * sizes.inner * settings.d_state + element_bytes * (settings.d_conv - 1) * sizes.channels
