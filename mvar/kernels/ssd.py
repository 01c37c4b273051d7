"""Mamba-2's scan and causal convolution, which take and return state; back ends behind one function.

The recurrence `h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T`, `y_t = h_t C_t + D x_t` is computed chunk by chunk as
matrix products (state-space duality, Dao & Gu 2024, arXiv:2405.21060, Sections 6 and 7): inside a chunk as masked
linear attention, between chunks through the state. With `c` the running sum of `dt A` inside a chunk, `i` the token
that reads and `j <= i` the one that wrote:

    y_i = sum_j exp(c_i - c_j) (C_i . B_j) dt_j x_j  +  exp(c_i) h C_i  +  D x_i
    h'  = exp(c_end) h  +  sum_j exp(c_end - c_j) dt_j x_j B_j^T

Every exponent is at most 0, so no decay is too stiff. The matrix `C_i . B_j` is shared by the heads.

Shapes: `B` batch, `L` tokens, `H` heads, `P` head size, `N` SSM state, `K` convolution width.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mvar.errors import UserError, one_of

Backend = Literal["auto", "torch", "mamba_ssm"]

CHUNK_SIZE = 64
# exp of what lies below is taken as exp(-60) = 9e-27, less than the rounding of fp32 and fp64: far faster than letting
# exp underflow, because denormal numbers are slow both to make and to multiply.
_MIN_EXPONENT = -60.0
# Elements of a chunk's (heads, tokens, tokens) matrices that are worked on at once on a CPU: they stay in its cache.
_BLOCK_ELEMENTS = 1 << 18


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    chunk_size: int | None = None,
    backend: Backend = "auto",
    need_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Mamba-2's state-space scan with one group, differentiable in every tensor (Dao & Gu 2024, Listing 1).

    The arithmetic is fp32, or fp64 for fp64 inputs, whatever autocast says.

    Args:
        x: `(B, L, H, P)`, any strides.
        dt: `(B, L, H)`, positive step sizes (after softplus).
        A: `(H,)`, negative.
        B: `(B, L, N)`, what a token writes to the state.
        C: `(B, L, N)`, what a token reads from it.
        D: `(H,)`, the skip connection; None for none.
        state: `(B, H, P, N)`, the state that the tokens before left; None for zeros.
        chunk_size: tokens of a chunk of the torch back end; the result does not depend on it.
        backend: `torch` runs everywhere, `mamba_ssm` is the original's Triton kernel, `auto` takes the latter where
            it can.
        need_state: False skips the final state.

    Returns:
        `y` `(B, L, H, P)` in the dtype of `x`, and the final state `(B, H, P, N)` in fp32 (fp64 for fp64; None if it
        is not needed).

    Raises:
        UserError: an unknown back end, or `mamba_ssm` where it is not installed or cannot run.
    """
    if _choose_backend(backend, x) == "mamba_ssm":
        return _scan_mamba_ssm(x, dt, A, B, C, D, state, chunk_size, need_state)
    chunk_size = chunk_size or CHUNK_SIZE
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled():
            return _Scan.apply(x, dt, A, B, C, D, state, chunk_size, need_state)
        y, final, _ = _forward(x, dt, A, B, C, D, state, chunk_size, need_state, keep=False)
        return y, final


def ssd_flops(
    length: int,
    num_heads: int,
    headdim: int,
    d_state: int,
    chunk_size: int = CHUNK_SIZE,
    has_state: bool = False,
    need_state: bool = False,
) -> int:
    """FLOPs of the matrix products of one forward scan of one sequence, as the torch back end computes them.

    A chunk of `q` tokens costs `2 q q N` for `C B^T`, `2 q q P` a head inside the chunk (the masked half included),
    and `2 q P N` a head each for reading the state (not in the first chunk, unless there is a state before it) and
    for writing it (not in the last one, unless the final state is needed). Backward costs twice as much again, plus
    `C B^T` once more. Elementwise work (exponentials, decays, D) is not counted.
    """
    chunks = [stop - start for start, stop in _chunks(length, chunk_size)]
    products = sum(2 * q * q * (d_state + num_heads * headdim) for q in chunks)
    reads = length - (0 if has_state else chunks[0])
    writes = length - (0 if need_state else chunks[-1])
    return products + 2 * (reads + writes) * num_heads * headdim * d_state


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution over the tokens that continues where an earlier part of the sequence ended.

    Args:
        x: `(B, L, channels)`.
        weight: `(channels, 1, K)`, the last tap for the current token.
        bias: `(channels,)`.
        tail: `(B, K - 1, channels)`, the inputs before `x`, oldest first; None for zeros.

    Returns:
        The convolution `(B, L, channels)` and the tail for what follows.
    """
    width = weight.shape[-1]
    x = F.pad(x, (0, 0, width - 1, 0)) if tail is None else torch.cat([tail.to(x.dtype), x], dim=1)
    y = F.conv1d(x.mT, weight, bias, groups=x.shape[-1]).mT
    # A copy: a view would keep all the inputs alive for as long as the state is.
    return y, x[:, x.shape[1] - width + 1 :].clone()


def _chunks(length: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _decay(exponent: Tensor) -> Tensor:
    return exponent.clamp_(_MIN_EXPONENT, 0.0).exp_()


class _Block:
    """A chunk of some sequences of the batch: its inputs in the dtype of the arithmetic, heads before tokens."""

    def __init__(self, inputs: tuple[Tensor, ...], rows: slice, tokens: slice, dtype: torch.dtype) -> None:
        x, dt, A, B, C = (t if t.dim() == 1 else t[rows, tokens].to(dtype) for t in inputs)
        self.B, self.C = B, C
        self.batch, self.length, self.heads, self.headdim = x.shape
        self.x = self.heads_first(x)  # (B * H, q, P), a view for a single sequence
        self.dt = dt.mT  # (B, H, q)
        # A step below the least exponent forgets all that was; cut off it does not cost the sum its precision.
        steps = (self.dt * A.to(dtype)[:, None]).clamp_(min=_MIN_EXPONENT)
        self.cum = steps.cumsum(-1)

    def heads_first(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(-1, self.length, self.headdim)

    def flat(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *x.shape[2:])

    def per_head(self, x: Tensor) -> Tensor:
        return x.view(self.batch, self.heads, *x.shape[1:])


def _batch_rows(x: Tensor, chunk_size: int) -> list[slice]:
    """Sequences that are worked on at once: few enough to stay in a CPU's cache, all of them on other devices."""
    batch, length, heads, headdim = x.shape
    q = min(length, chunk_size)
    size = batch if x.device.type != "cpu" else max(1, _BLOCK_ELEMENTS // (heads * q * max(q, headdim)))
    return [slice(start, stop) for start, stop in _chunks(batch, size)]


def _dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _forward(x, dt, A, B, C, D, state, chunk_size, need_state, keep) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The scan without autograd; with `keep` also the states between the chunks, which backward needs."""
    length, dtype = x.shape[1], _dtype(x)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    finals, kept = [], []
    for rows in _batch_rows(x, chunk_size):
        h = None if state is None else state[rows].to(dtype).reshape(-1, *state.shape[2:])
        for start, stop in _chunks(length, chunk_size):
            block = _Block((x, dt, A, B, C), rows, slice(start, stop), dtype)
            _write_output(y[rows, start:stop], block, D, h)
            if need_state or stop < length:
                h = _next_state(block, h)
                if keep and stop < length:
                    kept.append(h)
        finals.append(h)
    final = torch.cat(finals).view(x.shape[0], x.shape[2], x.shape[3], B.shape[2]) if need_state else None
    return y, final, kept


def _write_output(y: Tensor, block: _Block, D: Tensor | None, h: Tensor | None) -> None:
    # Tokens j that write before tokens i that read: every product below is then free of transposed copies.
    scores = torch.bmm(block.B, block.C.mT).triu_()
    matrix = _decay(block.cum[..., None, :] - block.cum[..., :, None])
    matrix.mul_(scores[:, None]).mul_(block.dt[..., None])
    if D is not None:
        matrix.diagonal(dim1=-2, dim2=-1).add_(D[:, None])
    out = torch.bmm(block.x.mT, block.flat(matrix))
    if h is not None:
        read = block.C.mT[:, None] * _decay(block.cum.clone())[..., None, :]
        torch.baddbmm(out, h, block.flat(read), out=out)
    y.copy_(block.per_head(out).permute(0, 3, 1, 2))


def _next_state(block: _Block, h: Tensor | None) -> Tensor:
    weight = _decay(block.cum[..., -1:] - block.cum).mul_(block.dt)
    write = block.flat(block.B[:, None] * weight[..., None])
    if h is None:
        return torch.bmm(block.x.mT, write)
    carried = h * block.flat(_decay(block.cum[..., -1:].clone()))[..., None]
    return torch.baddbmm(carried, block.x.mT, write, out=carried)


class _Scan(torch.autograd.Function):
    """The scan with a backward of its own: it keeps the states between chunks and recomputes what is cheap."""

    @staticmethod
    def forward(ctx: FunctionCtx, x, dt, A, B, C, D, state, chunk_size, need_state):
        y, final, kept = _forward(x, dt, A, B, C, D, state, chunk_size, need_state, keep=True)
        ctx.save_for_backward(x, dt, A, B, C, D, state, *kept)
        ctx.chunk_size = chunk_size
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None):
        x, dt, A, B, C, D, state, *kept = ctx.saved_tensors
        dtype = _dtype(x)
        if dy is None:
            dy = torch.zeros_like(x)
        dx, ddt, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt, B, C))
        dA, dD = (torch.zeros(A.shape, dtype=dtype, device=x.device) for _ in range(2))
        dstate = None if state is None else torch.empty_like(state, dtype=dtype)
        spans = list(_chunks(x.shape[1], ctx.chunk_size))
        with torch.autocast(x.device.type, enabled=False):
            for number, rows in enumerate(_batch_rows(x, ctx.chunk_size)):
                states = [None if state is None else state[rows].to(dtype).reshape(-1, *state.shape[2:])]
                states += kept[number * (len(spans) - 1) : (number + 1) * (len(spans) - 1)]
                dh = None if dfinal is None else dfinal[rows].to(dtype).reshape(-1, *dfinal.shape[2:])
                for (start, stop), h in zip(reversed(spans), reversed(states), strict=True):
                    tokens = slice(start, stop)
                    block = _Block((x, dt, A, B, C), rows, tokens, dtype)
                    grads = _ChunkGrads(block, block.heads_first(dy[rows, tokens].to(dtype)), D)
                    grads.inside()
                    if dh is not None:
                        grads.write(dh, h)
                    if h is not None:
                        dh = grads.read(dh, h)
                    dx[rows, tokens], ddt[rows, tokens] = block.per_head(grads.dx).permute(0, 3, 1, 2), grads.dt(A).mT
                    dB[rows, tokens], dC[rows, tokens] = grads.dB, grads.dC
                    dA += grads.dA
                    dD += grads.dD
                if dstate is not None:
                    dstate[rows] = dh.view(dstate[rows].shape)
        dD = None if D is None else dD.to(D.dtype)
        dstate = None if state is None else dstate.to(state.dtype)
        return dx, ddt, dA.to(A.dtype), dB, dC, dD, dstate, None, None


class _ChunkGrads:
    """Gradients of one chunk. `da`, of the decay `dt A` of each step, adds up what every step's decay multiplies."""

    def __init__(self, block: _Block, dy: Tensor, D: Tensor | None) -> None:
        self.block, self.dy, self.D = block, dy, D

    def inside(self) -> None:
        """What flows through the chunk's own matrix, here with the reading token i before the writing token j."""
        block, dy = self.block, self.dy
        decay = _decay(block.cum[..., :, None] - block.cum[..., None, :])
        scores = torch.bmm(block.C, block.B.mT).tril_()[:, None]
        dmatrix = block.per_head(torch.bmm(dy, block.x.mT.contiguous()))  # dy_i . x_j
        self.dD = dmatrix.diagonal(dim1=-2, dim2=-1).sum((0, 2))
        dmatrix.mul_(decay)
        matrix = decay.mul_(scores).mul_(block.dt[..., None, :])
        if self.D is not None:
            matrix.diagonal(dim1=-2, dim2=-1).add_(self.D[:, None])
        self.dx = torch.bmm(dy.mT, block.flat(matrix))  # (B * H, P, q)

        flow = dmatrix * scores  # through x_j to y_i, dt_j aside
        # No decay acts on the diagonal. It must not enter below, where it would cancel only up to rounding: under a
        # stiff decay that is more than all the rest.
        diagonal = flow.diagonal(dim1=-2, dim2=-1)
        own = diagonal.clone()
        diagonal.zero_()
        into = flow.sum(-2)
        out_of = (flow @ block.dt[..., None]).squeeze(-1)
        self.ddt = into + own
        since = torch.ones(block.length, block.length, dtype=dy.dtype, device=dy.device).tril_()
        self.da = (out_of - into * block.dt) @ since  # sum over i >= t

        dscores = dmatrix.mul_(block.dt[..., None, :]).sum(1).tril_()
        self.dC = torch.bmm(dscores, block.B)
        self.dB = torch.bmm(dscores.mT, block.C)

    def write(self, dh: Tensor, h: Tensor | None) -> None:
        """What flows through the state after the chunk; `h` is the state before it."""
        block = self.block
        keep = _decay(block.cum[..., -1:] - block.cum)
        weight = keep * block.dt
        write = (block.B.mT[:, None] * weight[..., None, :]).flatten(0, 1)
        torch.baddbmm(self.dx, dh, write, out=self.dx)
        dwrite = block.per_head(torch.bmm(block.x, dh))  # (B, H, q, N)
        flow = keep.mul_((dwrite * block.B[:, None]).sum(-1))
        self.ddt += flow
        self.dB += dwrite.mul_(weight[..., None]).sum(1)
        before = torch.ones(block.length, block.length, dtype=dh.dtype, device=dh.device).triu_(1)
        self.da += (flow * block.dt) @ before  # sum over j < t
        if h is not None:
            passed = (dh * h).sum((1, 2)).view(block.batch, block.heads, 1)
            self.da += passed * _decay(block.cum[..., -1:].clone())

    def read(self, dh: Tensor | None, h: Tensor) -> Tensor:
        """What flows through the state before the chunk; returns that state's gradient."""
        block = self.block
        decay = _decay(block.cum.clone())
        read = block.flat(block.C[:, None] * decay[..., None])
        dread = block.per_head(torch.bmm(self.dy, h)).mul_(decay[..., None])
        self.dC += dread.sum(1)
        flow = (dread * block.C[:, None]).sum(-1)
        since = torch.ones(block.length, block.length, dtype=h.dtype, device=h.device).tril_()
        self.da += flow @ since
        if dh is None:
            return torch.bmm(self.dy.mT, read)
        carried = dh * block.flat(decay[..., -1:])[..., None]
        return torch.baddbmm(carried, self.dy.mT, read, out=carried)

    def dt(self, A: Tensor) -> Tensor:
        """The gradient of dt `(B, H, q)`; leaves that of A in `dA`."""
        self.dA = (self.block.dt * self.da).sum((0, 2))
        return self.ddt + self.da * A.to(self.da.dtype)[:, None]


def _choose_backend(backend: str, x: Tensor) -> str:
    if backend not in ("auto", "torch", "mamba_ssm"):
        raise one_of("runtime.scan_backend", backend, ("auto", "torch", "mamba_ssm"))
    if backend == "torch":
        return "torch"
    possible = x.is_cuda and x.dtype != torch.float64
    if backend == "auto":
        return "mamba_ssm" if possible and _mamba_ssm_kernel() is not None else "torch"
    if not possible:
        raise UserError(
            f"runtime.scan_backend: 'mamba_ssm' cannot run {x.dtype} on {x.device.type}; allowed: fp32, bf16 or fp16 "
            "on cuda, or the back end torch"
        )
    if _mamba_ssm_kernel() is None:
        raise UserError(
            "runtime.scan_backend: 'mamba_ssm' is not installed; allowed: pip install mamba-ssm --no-build-isolation, "
            "or the back end torch"
        )
    return "mamba_ssm"


@cache
def _mamba_ssm_kernel() -> Any:
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except Exception:  # a broken build raises anything from ImportError to OSError and AttributeError
        return None
    return mamba_chunk_scan_combined


def _scan_mamba_ssm(x, dt, A, B, C, D, state, chunk_size, need_state) -> tuple[Tensor, Tensor | None]:
    y, final = _mamba_ssm_kernel()(
        x,
        dt,
        A,
        B[:, :, None],
        C[:, :, None],
        chunk_size=chunk_size or 256,  # the kernel's own default
        D=D,
        initial_states=state,
        return_final_states=True,
    )
    return y, final.float() if need_state else None
