"""Mamba-2 as a mixer: a causal state-space scan over the concatenated scales, in raster order or another.

Parameter names and shapes are those of the official Mamba-2 module (Dao & Gu 2024, arXiv:2405.21060), so that M-VAR's
checkpoints load as they are. Shapes: `B` batch, `L` tokens, `D` width, `H` heads, `P` head size, `N` SSM state.
"""

import math
from typing import NamedTuple, cast

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
from mvar.mixers.scan_orders import scan_paths, visible_in_order
from mvar.scales import ScaleSchedule, Span


class Mamba2State(NamedTuple):
    """What the tokens so far left behind; its size does not depend on their number."""

    conv_tail: Tensor  # (B, d_conv - 1, channels), the convolution's last inputs
    ssm: Tensor  # (B, H, P, N), fp32 (fp64 in an fp64 model)


States = Mamba2State | tuple[Mamba2State, ...] | None  # one a direction, where there are several


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


@torch.no_grad()
def draw_decays(A_log: Tensor, dt_bias: Tensor) -> None:
    """Initialise them as Mamba-2 does: `exp(A_log)` uniform in [1, 16], `softplus(dt_bias)` log-uniform in [1e-3, 0.1].

    Args:
        A_log, dt_bias: `(H,)`; a token keeps `exp(-exp(A_log) softplus(... + dt_bias))` of a head's state.
    """
    A_log.uniform_(1, 16).log_()
    dt = dt_bias.uniform_(math.log(1e-3), math.log(0.1)).exp_().clamp_(min=1e-4)
    dt.add_(torch.log(-torch.expm1(-dt)))  # the inverse of softplus


class OfficialConv(nn.Conv1d):
    """Holds the convolution's parameters under their official names; `causal_conv` does the work."""

    bias: nn.Parameter


class Mamba2(Mixer):
    """Mamba-2 with one group, a gated RMSNorm and no projection biases, as M-VAR's inter-scale mixer."""

    key = "mamba"
    cuts = ("state",)
    Settings = MambaConfig
    settings: MambaConfig
    examples = "scan_order=snake", "scan_order=both"

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

    def forward(self, x: Tensor, span: Span, state: States = None) -> tuple[Tensor, States]:
        """Scan the span's tokens `(B, L, D)` on from the state that the coarser scales left.

        Scans in several directions share all weights, and the mean of their normalised outputs is projected.
        """
        projected = self.in_proj(x)
        paths = scan_paths(self.settings.scan_order, span, x.device)
        if len(paths) == 1:
            [path] = paths
            y, left = self._scan(path.arrange(projected), span, cast("Mamba2State | None", state))
            return self.out_proj(path.restore(y)), left
        states = (None,) * len(paths) if state is None else cast("tuple[Mamba2State, ...]", state)
        scans = [self._scan(path.arrange(projected), span, one) for path, one in zip(paths, states, strict=True)]
        y = sum(path.restore(y) for path, (y, _) in zip(paths, scans, strict=True)) / len(paths)
        return self.out_proj(y), None if span.is_last else tuple(cast("Mamba2State", left) for _, left in scans)

    def _scan(self, projected: Tensor, span: Span, state: Mamba2State | None) -> tuple[Tensor, Mamba2State | None]:
        """One scan, before the output's projection: of tokens `(B, L, projected)`, in its order, to `(B, L, H P)`."""
        tail, ssm = (None, None) if state is None else state
        sizes, n = self.sizes, self.settings.d_state
        z, xbc, dt = projected.split([sizes.inner, sizes.channels, sizes.heads], dim=-1)
        own = "torch" if self.runtime.scan_backend in ("torch", "plain") else "auto"
        xbc, tail = causal_conv(xbc, self.conv1d.weight, self.conv1d.bias, tail, "silu", own)
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
        return self.norm(y.flatten(-2), z), None if ssm is None else Mamba2State(tail, ssm)

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        """Official M-VAR: truncated normals for the matrices, Mamba-2's own draw for the decays.

        The convolution gets a standard deviation of 0.02.
        """
        for weight, deviation in ((self.in_proj.weight, std), (self.conv1d.weight, 0.02), (self.out_proj.weight, std)):
            nn.init.trunc_normal_(weight, std=deviation)
        nn.init.zeros_(self.conv1d.bias)
        draw_decays(self.A_log, self.dt_bias)
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm.weight)

    @classmethod
    def visible(cls, settings: MambaConfig, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """Itself and all tokens before it in the scan; with both directions its own scale and all coarser ones."""
        return visible_in_order(settings.scan_order, schedule)

    @classmethod
    def num_params(cls, config: ModelConfig, settings: MambaConfig) -> int:
        """Both projections, the convolution, the norm's weight, and three numbers a head."""
        sizes = Sizes.of(config, settings)
        projections = config.width * (sizes.projected + sizes.inner)
        return projections + sizes.channels * (settings.d_conv + 1) + sizes.inner + 3 * sizes.heads

    @classmethod
    def flops(cls, config: ModelConfig, settings: MambaConfig, span: Span) -> int:
        """Projections, convolution and the scan's matrix products at the scan's own chunk size (`ssd_flops`).

        Each direction has a convolution and a scan of its own.
        """
        sizes, scans = Sizes.of(config, settings), settings.num_scans
        token = config.width * (sizes.projected + sizes.inner) + scans * settings.d_conv * sizes.channels
        scan = ssd_flops(
            span.length,
            sizes.heads,
            settings.headdim,
            settings.d_state,
            has_state=span.first > 0,
            need_state=not span.is_last,
        )
        return 2 * token * span.length + scans * scan

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: MambaConfig, span: Span) -> int:
        """None: there is no attention."""
        return 0

    @classmethod
    def state_bytes(
        cls, config: ModelConfig, settings: MambaConfig, schedule: ScaleSchedule, element_bytes: int
    ) -> int:
        """Of each direction the SSM state in fp32 and the convolution's tail, whatever the schedule."""
        sizes = Sizes.of(config, settings)
        one = 4 * sizes.inner * settings.d_state + element_bytes * (settings.d_conv - 1) * sizes.channels
        return settings.num_scans * one
