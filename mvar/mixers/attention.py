"""The attention mixers: `global` (VAR's block-causal attention) and `intra` (M-VAR's, within a scale).

Shapes: `B` batch, `L` tokens of a span, `D` width, `H` heads. Parameter names are the official code's.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar.config import ModelConfig, RuntimeConfig
from mvar.kernels.attention import attend
from mvar.mixers.base import Mixer
from mvar.scales import ScaleSchedule, Span

MAX_LOG_SCALE = math.log(100)  # official code: the learned temperature of a head stays below 100


@dataclass
class KeyValueState:
    """Keys and values `(B, H, L, head_dim)` of all scales, allocated once; the first `filled` tokens are known."""

    keys: Tensor
    values: Tensor
    filled: int = 0

    @classmethod
    def allocate(cls, like: Tensor, num_tokens: int) -> "KeyValueState":
        """Room for a whole image, with the batch, heads, type and device of `like` `(B, H, L, head_dim)`.

        Token by token in memory, as projections write them: appending then copies whole rows.
        """
        batch, heads, _, head_dim = like.shape
        keys, values = (like.new_empty(batch, num_tokens, heads, head_dim).transpose(1, 2) for _ in range(2))
        return cls(keys, values)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the tokens that follow; returns the keys and values of all tokens so far."""
        start, self.filled = self.filled, self.filled + k.shape[2]
        if k.requires_grad:  # autograd refuses buffers that a later step overwrites, so gradients pay for a copy
            self.keys = torch.cat((self.keys[:, :, :start], k), dim=2)
            self.values = torch.cat((self.values[:, :, :start], v), dim=2)
        else:
            self.keys[:, :, start : self.filled] = k
            self.values[:, :, start : self.filled] = v
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]


class Attention(Mixer):
    """What both attention mixers share: projections, qk-norm, initialisation and counts."""

    key = "attn"

    def __init__(self, config: ModelConfig, runtime: RuntimeConfig) -> None:
        super().__init__(config, runtime)
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
    def num_params(cls, config: ModelConfig) -> int:
        """See `Mixer.num_params`."""
        width = config.width
        return 4 * width * width + 3 * width + (config.num_heads if config.attn_l2_norm else 0)

    @classmethod
    def flops(cls, config: ModelConfig, span: Span) -> int:
        """See `Mixer.flops`: four projections, and two products for every query-key pair."""
        return 8 * span.length * config.width**2 + 4 * config.width * cls.score_cells(span)


def _at_length(x: Tensor, length: Tensor | float) -> Tensor:
    """Vectors `(..., head_dim)` of the given length; as `F.normalize`, a zero stays zero."""
    # fp32 at least: a half-precision sum of squares over- or underflows
    x_ = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x_, dim=-1, keepdim=True)
    return (x_ * (length / norm.clamp_min(1e-12))).to(x.dtype)


class GlobalAttention(Attention):
    """VAR's block-causal attention: scale k attends to scales 0..k. State: keys and values."""

    reach = "scales"

    def forward(self, x: Tensor, span: Span, state: KeyValueState | None = None) -> tuple[Tensor, KeyValueState | None]:
        """See `Mixer.forward`."""
        if (state.filled if state else 0) != span.start:
            raise ValueError(f"the span starts at token {span.start}; the state holds {state.filled if state else 0}")
        q, k, v = self.project(x)
        if state is None and not span.is_last:
            state = KeyValueState.allocate(k, span.schedule.num_tokens)
        if state is not None:
            k, v = state.append(k, v)
        y = attend(q, k, v, span, within_scale=False, backend=self.runtime.attention_backend)
        return self.merge(y), None if span.is_last else state

    @classmethod
    def score_cells(cls, span: Span) -> int:
        """See `Mixer.score_cells`: n_k times n_1 + ... + n_k."""
        return sum(span.schedule.lengths[k] * span.visible(k) for k in span.scales)

    @classmethod
    def state_bytes(cls, config: ModelConfig, schedule: ScaleSchedule, element_bytes: int) -> int:
        """See `Mixer.state_bytes`: keys and values of every token."""
        return 2 * schedule.num_tokens * config.width * element_bytes


class IntraScaleAttention(Attention):
    """M-VAR's intra-scale attention (paper, Eq. 4-5): a scale attends to itself. No state."""

    reach = "scale"

    def forward(self, x: Tensor, span: Span, state: None = None) -> tuple[Tensor, None]:
        """See `Mixer.forward`."""
        q, k, v = self.project(x)
        return self.merge(attend(q, k, v, span, within_scale=True, backend=self.runtime.attention_backend)), None

    @classmethod
    def score_cells(cls, span: Span) -> int:
        """See `Mixer.score_cells`: n_k squared."""
        return sum(span.schedule.lengths[k] ** 2 for k in span.scales)

    @classmethod
    def state_bytes(cls, config: ModelConfig, schedule: ScaleSchedule, element_bytes: int) -> int:
        """See `Mixer.state_bytes`: none."""
        return 0
