"""The mixer `conv`: depthwise 2-D convolutions inside a scale and over the coarser map, resized. No attention.

The cheap and purely local inter-scale mixer: what anything that carries scales has to beat. Shapes: `B` batch, `L`
tokens of a span, `D` width, `s` side of a map.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn

from mvar.config import Config, ModelConfig, RuntimeConfig
from mvar.mixers.base import Mixer
from mvar.scales import ScaleSchedule, Span


class ConvSettings(Config):
    """`conv:5` or `conv:k=5` in a pattern, `model.conv.k=5` for every `conv`."""

    k: int = Field(default=3, ge=1, description="Side of the kernels in tokens, odd.")

    @field_validator("k")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"model.conv.k: {value} is even; allowed: odd numbers, 1 or more")
        return value


def resize(x: Tensor, side: int) -> Tensor:
    """A map `(B, D, s, s)` at another side, bilinear between the centres of its cells."""
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


class ScaleConv(Mixer):
    """`proj(silu(g) * (own(u) + coarser(resize(u of the coarser scale))))`, with u and g linear in the token.

    State: u of the coarser scale, `(B, n, D)`.
    """

    key = "conv"
    Settings = ConvSettings
    settings: ConvSettings
    examples = "1", "5"
    cuts = ("state",)

    def __init__(self, config: ModelConfig, settings: ConvSettings, runtime: RuntimeConfig) -> None:
        super().__init__(config, settings, runtime)
        width, k = config.width, settings.k
        self.in_proj = nn.Linear(width, 2 * width, bias=False)
        self.own, self.coarser = (nn.Conv2d(width, width, k, padding=k // 2, groups=width) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, span: Span, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See `Mixer.forward`."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        lengths, outputs, before = [span.schedule.lengths[scale] for scale in span.scales], [], state
        for scale, tokens in zip(span.scales, u.split(lengths, dim=1), strict=True):
            y = self.own(_as_map(tokens))
            if before is not None:
                y = y + self.coarser(resize(_as_map(before), span.schedule.sides[scale]))
            outputs.append(y.flatten(2).mT)
            before = tokens
        y = self.proj(torch.cat(outputs, dim=1).to(gate.dtype) * F.silu(gate))
        return y, None if span.is_last or before is None else before.clone(memory_format=torch.contiguous_format)

    def init_weights(self, std: float) -> None:
        """See `Mixer.init_weights`; kernels keep the size of what they sum, the output shrinks by `1/sqrt(2 depth)`."""
        for weight, deviation in (
            (self.in_proj.weight, std),
            (self.own.weight, 1 / self.settings.k),
            (self.coarser.weight, 1 / self.settings.k),
            (self.proj.weight, std),
        ):
            nn.init.trunc_normal_(weight, std=deviation)
        with torch.no_grad():
            self.proj.weight.div_(math.sqrt(2 * self.config.depth))
            for layer in (self.own, self.coarser, self.proj):
                if layer.bias is not None:
                    layer.bias.zero_()

    @classmethod
    def visible(cls, settings: ConvSettings, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """See `Mixer.visible`: what lies under a kernel, and of the coarser scale what is resized to that."""
        found = np.zeros((schedule.num_tokens, schedule.num_tokens), np.bool_)
        for scale, side in enumerate(schedule.sides):
            rows = slice(schedule.offsets[scale], schedule.offsets[scale + 1])
            for other in range(max(0, scale - 1), scale + 1):
                line = _line(side, schedule.sides[other], settings.k)
                found[rows, schedule.offsets[other] : schedule.offsets[other + 1]] = np.kron(line, line)
        return found

    @classmethod
    def num_params(cls, config: ModelConfig, settings: ConvSettings) -> int:
        """See `Mixer.num_params`."""
        width = config.width
        return 3 * width**2 + width + 2 * width * (settings.k**2 + 1)

    @classmethod
    def flops(cls, config: ModelConfig, settings: ConvSettings, span: Span) -> int:
        """See `Mixer.flops`: the projections, and both kernels at every token, the first scale's once."""
        kernels = 2 * span.length - (span.schedule.lengths[0] if span.first == 0 else 0)
        return 6 * span.length * config.width**2 + 2 * kernels * config.width * settings.k**2

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: ConvSettings, span: Span) -> int:
        """See `Mixer.score_cells`: none."""
        return 0

    @classmethod
    def state_bytes(
        cls, config: ModelConfig, settings: ConvSettings, schedule: ScaleSchedule, element_bytes: int
    ) -> int:
        """See `Mixer.state_bytes`: the scale before the last, the largest."""
        return sum(schedule.lengths[-2:-1]) * config.width * element_bytes


def _as_map(tokens: Tensor) -> Tensor:
    """Tokens `(B, s * s, D)` in raster order as a map `(B, D, s, s)`, a view."""
    side = math.isqrt(tokens.shape[1])
    return tokens.mT.unflatten(2, (side, side))


def _line(side: int, other: int, k: int) -> NDArray[np.bool_]:
    """`(side, other)`: which rows of a map a row of another sees, through resizing and a kernel; columns alike."""
    cells = torch.eye(other, dtype=torch.float64)[None]  # channels: a line with one cell set
    resized = cells if side == other else F.interpolate(cells, size=side, mode="linear", align_corners=False)
    taken = resized[0].T.numpy() != 0
    near = np.abs(np.arange(side)[:, None] - np.arange(side)) <= k // 2
    return near @ taken
