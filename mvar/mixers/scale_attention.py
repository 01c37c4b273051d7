"""What attention mixers share: projections, qk-norm, initialisation and counts.

Shapes: `B` batch, `L` tokens of a span, `D` width, `H` heads. Parameter names are the official code's.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar.config import ModelConfig, RuntimeConfig
from mvar.kernels.attention import attend_severed
from mvar.mixers.base import Mixer
from mvar.scales import Span

MAX_LOG_SCALE = math.log(100)  # official code: the learned temperature of a head stays below 100


class KeptKeys(NamedTuple):
    """Keys and values `(B, H, K, head_dim)` of the last scales."""

    keys: Tensor
    values: Tensor

    @classmethod
    def followed_by(cls, kept: "KeptKeys | None", k: Tensor, v: Tensor) -> "KeptKeys":
        """What was kept, and the tokens that follow."""
        return cls(k, v) if kept is None else cls(torch.cat((kept.keys, k), dim=2), torch.cat((kept.values, v), dim=2))

    def last(self, num_tokens: int) -> "KeptKeys | None":
        """The last tokens alone: a view would keep all the projections alive. None where nothing is to be kept."""
        if not num_tokens:
            return None
        return KeptKeys(
            *(t[:, :, t.shape[2] - num_tokens :].clone(memory_format=torch.contiguous_format) for t in self)
        )


class ScaleAttention(Mixer):
    """Attention with VAR's projections; which keys a token sees a subclass says."""

    key = "attn"
    has_maps: ClassVar[bool] = False  # whether it mixes by `softmax(q k^T)` over the tokens that `visible` tells

    def __init__(self, config: ModelConfig, settings: Any, runtime: RuntimeConfig) -> None:
        super().__init__(config, settings, runtime)
        width = config.width
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        if config.attn_l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.num_heads, 1, 1), 4.0).log())

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(B, H, L, head_dim)` of `x` `(B, L, D)`; `softmax(q k^T)` is the attention map.

        The queries carry the temperature: `0.25 / sqrt(head_dim)`, or with qk-norm a learned one per head on unit
        vectors (official code).
        """
        batch, length, width = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias.to(x.dtype))
        heads = self.config.num_heads
        q, k, v = qkv.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        if not self.config.attn_l2_norm:
            return q * (0.25 / math.sqrt(width // heads)), k, v
        scale = self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()
        return _at_length(q, scale), _at_length(k, 1.0), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, first_query: int, first_key: int) -> Tensor:
        """Softmax attention of queries that all see the same keys, without the pairs that an intervention cuts.

        Args:
            q: `(B, H, n, head_dim)`, as `project` gives them, of neighbouring tokens.
            k, v: `(B, H, m, head_dim)`, of neighbouring tokens.
            first_query, first_key: number of their first token in the image.
        """
        if self.severed is None:
            return F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return attend_severed(q, k, v, self.severed, first_query, first_key)

    def merge(self, y: Tensor) -> Tensor:
        """Join the heads of `y` `(B, H, L, head_dim)` and project to `(B, L, D)`."""
        return self.proj(y.transpose(1, 2).flatten(2))

    def init_weights(self, std: float) -> None:
        """See `Mixer.init_weights`; the output projection shrinks by `1 / sqrt(2 depth)`."""
        nn.init.trunc_normal_(self.mat_qkv.weight, std=std)
        nn.init.trunc_normal_(self.proj.weight, std=std)
        with torch.no_grad():
            self.proj.weight.div_(math.sqrt(2 * self.config.depth))
            for bias in (self.q_bias, self.v_bias, self.proj.bias):
                bias.zero_()
            if self.config.attn_l2_norm:
                self.scale_mul_1H11.fill_(math.log(4))

    @classmethod
    def num_params(cls, config: ModelConfig, settings: Any) -> int:
        """See `Mixer.num_params`."""
        width = config.width
        return 4 * width * width + 3 * width + (config.num_heads if config.attn_l2_norm else 0)

    @classmethod
    def flops(cls, config: ModelConfig, settings: Any, span: Span) -> int:
        """See `Mixer.flops`: four projections, and two products for every query-key pair."""
        return 8 * span.length * config.width**2 + 4 * config.width * cls.score_cells(config, settings, span)


def _at_length(x: Tensor, length: Tensor | float) -> Tensor:
    """Vectors `(..., head_dim)` of the given length; as `F.normalize`, a zero stays zero."""
    # fp32 at least: a half-precision sum of squares over- or underflows
    x_ = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x_, dim=-1, keepdim=True)
    return (x_ * (length / norm.clamp_min(1e-12))).to(x.dtype)
