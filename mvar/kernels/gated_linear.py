"""Gated linear attention (Yang et al., arXiv:2312.06635) in chunks, with a state that is taken and returned.

Shapes: `B` batch, `L` tokens, `H` heads, `K` key size, `V` value size.
"""

import torch
from torch import Tensor

from mvar.kernels.even_chunks import EvenChunks, decayed_states

# Inside a chunk a decay is a product of two factors, one by the token that reads and one by the token that wrote. The
# latter is at most exp((CHUNK_SIZE - 1) * -MIN_LOG_DECAY) = 4e32, which leaves fp32 room for keys up to 1e5. A token
# that keeps less than exp(-5) of a channel keeps as good as nothing.
CHUNK_SIZE = 16
MIN_LOG_DECAY = -5.0


def gated_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None, need_state: bool = True
) -> tuple[Tensor, Tensor | None]:
    """`S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T`, `y_t = q_t S_t`; differentiable in every tensor.

    The arithmetic is fp32, or fp64 for fp64 inputs, whatever autocast says.

    Args:
        q, k: `(B, L, H, K)`; no scale is applied.
        v: `(B, L, H, V)`.
        log_decay: `(B, L, H, K)`, negative or 0; what is below `MIN_LOG_DECAY` is taken as that.
        state: `(B, H, K, V)`, what the tokens before left; None for zeros.
        need_state: False skips the final state.

    Returns:
        `y` `(B, L, H, V)` in the dtype of `v`, and the final state in fp32 (fp64 for fp64; None if it is not needed).
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    chunks = EvenChunks.of(v.shape[1], CHUNK_SIZE)
    with torch.autocast(v.device.type, enabled=False):
        q_, k_, v_, g = (chunks.cut(x.to(dtype)) for x in (q, k, v, log_decay))
        g = g.clamp(min=MIN_LOG_DECAY).cumsum(-2)
        first = g[..., :1, :].detach()  # it cancels; a later one would change what is before it, by rounding
        scores = (q_ * (g - first).exp()) @ (k_ * (first - g).exp()).mT
        y = scores.tril() @ v_
        last = g[..., -1:, :]
        writers = chunks.num - (0 if need_state else 1)
        written = (k_ * (last - g).exp())[:, :, :writers].mT @ v_[:, :, :writers]
        states = decayed_states(state, last[:, :, :writers].exp().mT.unbind(2), written.unbind(2))
        before = ([] if state is None else [state]) + states[: chunks.num - 1]
        if before:
            read = (q_ * g.exp())[:, :, -len(before) :] @ torch.stack(before, 2)
            y = y + read if len(before) == chunks.num else torch.cat((y[:, :, :1], y[:, :, 1:] + read), 2)
    return chunks.join(y).to(v.dtype), states[-1] if need_state else None


def gated_linear_flops(
    length: int, num_heads: int, key_size: int, value_size: int, *, has_state: bool = False, need_state: bool = False
) -> int:
    """FLOPs of the matrix products of one forward pass over one sequence, padding and masked pairs included.

    A chunk of c tokens costs `2 c c (K + V)` a head for its pairs, and `2 c K V` each for reading the state (not in
    the first chunk, unless there is one before it) and for writing it (not in the last one, unless it is needed).
    """
    num, size, _ = EvenChunks.of(length, CHUNK_SIZE)
    pairs = num * size * size * (key_size + value_size)
    reads, writes = num - (0 if has_state else 1), num - (0 if need_state else 1)
    return 2 * num_heads * (pairs + (reads + writes) * size * key_size * value_size)
