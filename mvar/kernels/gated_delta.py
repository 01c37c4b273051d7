"""The gated delta rule (Yang et al., arXiv:2412.06464) in chunks, with a state that is taken and returned.

Shapes: `B` batch, `L` tokens, `H` heads, `K` key size, `V` value size.
"""

import torch
from torch import Tensor

from mvar.kernels.even_chunks import EvenChunks

CHUNK_SIZE = 64


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    need_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`S_t = exp(log_decay_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T`, `y_t = q_t S_t`; differentiable.

    What a key held is replaced by `beta` of the new value. The corrections inside a chunk are one triangular system,
    solved by substitution: powers of its matrix, the faster way, cancel badly where keys are alike. The arithmetic is
    fp32, or fp64 for fp64 inputs, whatever autocast says.

    Args:
        q, k: `(B, L, H, K)`, k of unit length; no scale is applied.
        v: `(B, L, H, V)`.
        log_decay: `(B, L, H)`, negative or 0.
        beta: `(B, L, H)`, from 0 to 1.
        state: `(B, H, K, V)`, what the tokens before left; None for zeros.
        need_state: False skips the final state.

    Returns:
        `y` `(B, L, H, V)` in the dtype of `v`, and the final state in fp32 (fp64 for fp64; None if it is not needed).
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    chunks = EvenChunks.of(v.shape[1], CHUNK_SIZE)
    with torch.autocast(v.device.type, enabled=False):
        q_, k_, v_, g, weight = (chunks.cut(x.to(dtype)) for x in (q, k, v, log_decay, beta))
        g, weight = g.cumsum(-1)[..., None], weight[..., None]
        decay = (g - g.mT).masked_fill(_above(chunks.size, g.device), -torch.inf).exp()
        weighted, since = k_ * weight, g.exp()
        system = (weighted @ k_.mT) * decay
        values, keys = v_ * weight, weighted * since
        if chunks.num > 1 or state is not None:
            values, keys = _solve(system, torch.cat((values, keys), -1)).split([v.shape[-1], k.shape[-1]], -1)
        else:
            values = _solve(system, values)
        scores = (q_ @ k_.mT) * decay
        left = k_ * (g[..., -1:, :] - g).exp()
        outputs = []
        for i in range(chunks.num):
            new = values[:, :, i] if state is None else values[:, :, i] - keys[:, :, i] @ state
            y = scores[:, :, i] @ new
            outputs.append(y if state is None else y + (q_[:, :, i] * since[:, :, i]) @ state)
            if need_state or i + 1 < chunks.num:
                written = left[:, :, i].mT @ new
                state = written if state is None else torch.addcmul(written, since[:, :, i, -1:], state)
    return chunks.join(torch.stack(outputs, 2)).to(v.dtype), state if need_state else None


def gated_delta_flops(
    length: int, num_heads: int, key_size: int, value_size: int, *, has_state: bool = False, need_state: bool = False
) -> int:
    """FLOPs of the matrix products of one forward pass over one sequence, padding and masked pairs included.

    A chunk of c tokens costs, a head, `2 c c (2 K + V)` for its pairs, `c (c - 1)` a column of its triangular system
    (V of them, and K more where any chunk has a state before it), `4 c K V` for reading the state, twice, where there
    is one, and `2 c K V` for writing it (not in the last one, unless it is needed).
    """
    num, size, _ = EvenChunks.of(length, CHUNK_SIZE)
    pairs = 2 * num * size * size * (2 * key_size + value_size)
    columns = value_size + (key_size if num > 1 or has_state else 0)
    reads, writes = num - (0 if has_state else 1), num - (0 if need_state else 1)
    products = (4 * reads + 2 * writes) * size * key_size * value_size
    return num_heads * (pairs + num * size * (size - 1) * columns + products)


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """`(I + strictly lower part of the system)^-1 right`; the diagonal counts as 1, what is above it as 0."""
    return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)


def _above(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1)
