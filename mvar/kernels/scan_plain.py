"""The reference of `scan.ssd_scan`, in plain torch operations: what it computes can be read here, and be compiled.

Listing 1 of Dao & Gu 2024 (arXiv:2405.21060) with a state before the first token. With `c` the running sum of `dt A`
inside a chunk, `i` the token that reads and `j <= i` the one that wrote:

    y_i = sum_j exp(c_i - c_j) (C_i . B_j) dt_j x_j  +  exp(c_i) h C_i  +  D x_i
    h'  = exp(c_end) h  +  sum_j exp(c_end - c_j) dt_j x_j B_j^T

Shapes, and letters of the products: `b` batch, `n` chunks, `i` and `j` tokens of a chunk, `h` heads, `p` head size, `s`
SSM state; `m` and `k` number states, the one before the first chunk and those that the chunks leave.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar.kernels.even_chunks import EvenChunks

CHUNK_SIZE = 64


class Scanned(NamedTuple):
    """What is scanned: the tensors of `ssd_scan`."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    state: Tensor | None


def scan(scanned: Scanned, chunk_size: int | None, need_state: bool) -> tuple[Tensor, Tensor | None]:
    """`ssd_scan` without the choice of a back end: same results, up to rounding. Decays are summed in fp64."""
    x, dt, A, B, C, D, state = scanned
    dtype = torch.promote_types(x.dtype, torch.float32)
    chunks = EvenChunks.of(x.shape[1], chunk_size or CHUNK_SIZE)  # what pads the last one has no step: it does nothing
    with torch.autocast(x.device.type, enabled=False):
        inputs, steps, B, C = (chunks.cut_tokens(t.to(dtype)) for t in (x, dt, B, C))
        decay = chunks.cut_tokens(dt.double() * A.double()).cumsum(2).mT  # (b, n, h, i)
        written = inputs * steps[..., None]
        pairs = torch.einsum("bnis,bnjs->bnij", C, B)[:, :, None] * _between(decay, dtype)
        y = torch.einsum("bnhij,bnjhp->bnihp", pairs, written)
        if chunks.num > 1 or state is not None or need_state:
            before, state = _states(decay, written, B, state)
            read = torch.einsum("bnis,bnhps->bnihp", C, before)
            y = y + read * decay.exp().to(dtype).mT[..., None]
        if D is not None:
            y = y + D.to(dtype)[:, None] * inputs
    return y.flatten(1, 2)[:, : x.shape[1]].to(x.dtype), state if need_state else None


def _states(decay: Tensor, written: Tensor, B: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states before every chunk `(b, n, h, p, s)`, and the one after the last."""
    total = decay[..., -1:]
    left = (total - decay).exp().to(B.dtype).mT[..., None]
    states = torch.einsum("bnjs,bnjhp->bnhps", B, written * left)
    first = torch.zeros_like(states[:, :1]) if state is None else state.to(B.dtype)[:, None]
    passed = F.pad(total[..., 0].mT.cumsum(-1), (1, 0))  # (b, h, 1 + n)
    states = torch.einsum("bhmk,bkhps->bmhps", _between(passed, B.dtype), torch.cat([first, states], dim=1))
    return states[:, :-1], states[:, -1]


def _between(decay: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left at i of what was there at j, from a running sum `(..., i)`: `(..., i, j)`, 0 for j > i."""
    above = torch.ones(2 * decay.shape[-1:], dtype=torch.bool, device=decay.device).triu(1)
    return (decay[..., :, None] - decay[..., None, :]).masked_fill(above, -torch.inf).exp().to(dtype)
