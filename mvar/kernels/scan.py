"""Mamba-2's scan, which takes and returns state: one function in front, which chooses among the back ends.

`scan_torch` runs everywhere and is tuned for CPUs; `mamba_ssm` is the original's Triton kernel for GPUs.

Shapes: `B` batch, `L` tokens, `H` heads, `P` head size, `N` SSM state.
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from mvar.errors import UserError, one_of
from mvar.kernels.scan_chunks import choose_chunk_size, chunk_bounds
from mvar.kernels.scan_torch import Scanned, scan

Backend = Literal["auto", "torch", "mamba_ssm"]


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
    take = _scan_mamba_ssm if choose_backend(backend, x) == "mamba_ssm" else scan
    return take(Scanned(x, dt, A, B, C, D, state), chunk_size, need_state)


def ssd_flops(
    length: int,
    num_heads: int,
    headdim: int,
    d_state: int,
    chunk_size: int | None = None,
    has_state: bool = False,
    need_state: bool = False,
) -> int:
    """FLOPs of the matrix products of one forward scan of one sequence, as the torch back end computes them.

    A chunk of `q` tokens costs `2 q q N` for `C B^T`, `2 q q P` a head inside the chunk (the masked half included),
    and `2 q P N` a head each for reading the state (not in the first chunk, unless there is a state before it) and
    for writing it (not in the last one, unless the final state is needed). Backward costs twice as much again, plus
    `C B^T` once more. Elementwise work (exponentials, decays, D) is not counted.
    """
    chunks = [stop - start for start, stop in chunk_bounds(length, chunk_size or choose_chunk_size(length))]
    products = sum(2 * q * q * (d_state + num_heads * headdim) for q in chunks)
    reads = length - (0 if has_state else chunks[0])
    writes = length - (0 if need_state else chunks[-1])
    return products + 2 * (reads + writes) * num_heads * headdim * d_state


def choose_backend(backend: str, x: Tensor) -> str:
    """The back end that `ssd_scan` takes for tensors such as `x`; a `UserError` where the one asked for cannot run."""
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
        from mamba_ssm.ops.triton.ssd_combined import (  # pyright: ignore[reportMissingImports]  optional
            mamba_chunk_scan_combined,
        )
    except Exception:  # a broken build raises anything from ImportError to OSError and AttributeError
        return None
    return mamba_chunk_scan_combined


def _scan_mamba_ssm(scanned: Scanned, chunk_size: int | None, need_state: bool) -> tuple[Tensor, Tensor | None]:
    x, dt, A, B, C, D, state = scanned
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
