"""The mixer `global`: VAR's block-causal attention over a token's own scale and the coarser ones.

Shapes: `B` batch, `L` tokens of a span, `D` width, `H` heads.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvar.config import ModelConfig
from mvar.kernels.attention import attend
from mvar.mixers.scale_attention import ScaleAttention
from mvar.scales import ScaleSchedule, Span


@dataclass(frozen=True)
class KeyValueState:
    """Keys and values `(B, H, L, head_dim)` of all scales, allocated once; the first `filled` tokens are known."""

    keys: Tensor
    values: Tensor
    filled: int = 0

    @classmethod
    def allocate(
        cls, batch: int, num_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> "KeyValueState":
        """Room for a whole image.

        Token by token in memory, as projections write them: appending then copies whole rows.
        """
        shape = (batch, num_tokens, num_heads, head_dim)
        keys, values = (torch.empty(shape, dtype=dtype, device=device).transpose(1, 2) for _ in range(2))
        return cls(keys, values)

    def append(self, k: Tensor, v: Tensor) -> "KeyValueState":
        """With the tokens that follow, in the same memory unless gradients are wanted."""
        start, filled = self.filled, self.filled + k.shape[2]
        if k.requires_grad:  # autograd refuses buffers that a later step overwrites, so gradients pay for a copy
            keys, values = (torch.cat((t[:, :, :start], n), 2) for t, n in ((self.keys, k), (self.values, v)))
            return KeyValueState(keys, values, filled)
        self.keys[:, :, start:filled] = k
        self.values[:, :, start:filled] = v
        return KeyValueState(self.keys, self.values, filled)

    def known(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far."""
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]


class GlobalAttention(ScaleAttention):
    """VAR's block-causal attention: scale k attends to scales 0..k. State: keys and values."""

    cuts = ("keys",)
    has_maps = True

    def forward(self, x: Tensor, span: Span, state: KeyValueState | None = None) -> tuple[Tensor, KeyValueState | None]:
        """See `Mixer.forward`."""
        if (state.filled if state else 0) != span.start:
            raise ValueError(f"the span starts at token {span.start}; the state holds {state.filled if state else 0}")
        q, k, v = self.project(x)
        if state is None and not span.is_last:
            state = self.prepared(len(k), span.schedule, k.dtype, k.device)
        if state is not None:
            state = state.append(k, v)
            k, v = state.known()
        y = attend(q, k, v, span, backend=self.runtime.attention_backend, severed=self.severed)
        return self.merge(y), None if span.is_last else state

    def prepared(
        self, batch: int, schedule: ScaleSchedule, dtype: torch.dtype, device: torch.device
    ) -> KeyValueState | None:
        """See `Mixer.prepared`: keys and values of every token; none where no scale follows the first."""
        if schedule.num_scales == 1:
            return None
        heads = self.config.num_heads
        return KeyValueState.allocate(batch, heads, schedule.num_tokens, self.config.width // heads, dtype, device)

    @classmethod
    def visible(cls, settings: None, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """See `Mixer.visible`: the own scale and all coarser ones."""
        levels = np.array(schedule.levels)
        return levels[:, None] >= levels

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: None, span: Span) -> int:
        """See `Mixer.score_cells`: n_k times n_1 + ... + n_k."""
        return sum(span.schedule.lengths[k] * span.visible(k) for k in span.scales)

    @classmethod
    def state_bytes(cls, config: ModelConfig, settings: None, schedule: ScaleSchedule, element_bytes: int) -> int:
        """See `Mixer.state_bytes`: keys and values of every token."""
        return 2 * schedule.num_tokens * config.width * element_bytes
