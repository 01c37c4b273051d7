"""Mamba-2's scan, which takes and returns state: one function in front, which chooses among the back ends.

`scan_plain` is the reference, and what compilers get; `scan_torch` runs everywhere and is tuned for CPUs; `mamba_ssm`
(the original's) and `fla` are Triton kernels for GPUs.

Shapes: `B` batch, `L` tokens, `H` heads, `P` head size, `N` SSM state.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mvar.errors import UserError, one_of
from mvar.kernels import optional, scan_plain, scan_torch
from mvar.kernels.scan_chunks import choose_chunk_size, chunk_bounds
from mvar.kernels.scan_plain import Scanned

Backend = Literal["auto", "plain", "torch", "mamba_ssm", "fla"]


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
        backend: `plain` is the reference, `torch` the tuned one that runs everywhere (compiled it is the reference),
            `mamba_ssm` the original's Triton kernel, `fla` that of fla-core; `auto` takes the first of these that is
            installed and can run, else `torch`.
        need_state: False skips the final state.

    Returns:
        `y` `(B, L, H, P)` in the dtype of `x`, and the final state `(B, H, P, N)` in fp32 (fp64 for fp64; None if it
        is not needed).

    Raises:
        UserError: an unknown back end, or one that is not installed or cannot run.
    """
    scan = SCANS[choose_backend(backend, x).name]
    return scan(Scanned(x, dt, A, B, C, D, state), chunk_size, need_state)


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


class Choice(NamedTuple):
    """A back end, and why `auto` takes it."""

    name: str
    why: str = "asked for"


def choose_backend(backend: str, x: Tensor) -> Choice:
    """The back end that `ssd_scan` takes for tensors such as `x`.

    Raises:
        UserError: an unknown one, or one that is missing or cannot run here.
    """
    if backend not in get_args(Backend):
        raise one_of("runtime.scan_backend", backend, get_args(Backend))
    if torch.compiler.is_compiling() and backend in ("auto", "torch"):
        return Choice("plain", "it is compiled")
    if backend in ("plain", "torch"):
        return Choice(backend)
    possible = x.is_cuda and x.dtype != torch.float64
    if backend == "auto":
        return _chosen(possible)
    if not possible:
        raise UserError(
            f"runtime.scan_backend: '{backend}' cannot run {x.dtype} on {x.device.type}; allowed: fp32, bf16 or fp16 "
            "on cuda, or the back end torch"
        )
    if torch.compiler.is_compiling():
        raise UserError(f"runtime.scan_backend: '{backend}' beside runtime.compile; allowed: auto, torch, plain")
    if KERNELS[backend].find() is None:
        raise UserError(
            f"runtime.scan_backend: '{backend}' is not installed; allowed: {KERNELS[backend].install}, or the back end "
            "torch"
        )
    return Choice(backend)


def _chosen(possible: bool) -> Choice:
    """The first kernel that is there."""
    if not possible:
        return Choice("torch", "kernels want a GPU, and no fp64")
    missing: list[str] = []
    for name, kernel in KERNELS.items():
        if kernel.find() is not None:
            return Choice(name, f"{' and '.join(missing)} not installed" if missing else "it is installed")
        missing.append(name)
    return Choice("torch", f"neither {' nor '.join(missing)} is installed; faster: {KERNELS['fla'].install}")


def _scan_mamba_ssm(scanned: Scanned, chunk_size: int | None, need_state: bool) -> tuple[Tensor, Tensor | None]:
    x, dt, A, B, C, D, state = scanned
    scan = optional.mamba_ssm_scan()
    assert scan
    y, final = scan(
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


def _scan_fla(scanned: Scanned, chunk_size: int | None, need_state: bool) -> tuple[Tensor, Tensor | None]:
    """The same recurrence as linear attention: `C` are the queries, `B` the keys, `dt x` the values, `dt A` the decay.

    Its chunk is its own; `chunk_size` is not heeded.
    """
    x, dt, A, B, C, D, state = scanned
    scan = optional.fla_scan()
    assert scan
    with torch.autocast(x.device.type, enabled=False):
        dt = dt.to(torch.promote_types(dt.dtype, torch.float32))
        queries, keys = (t.to(x.dtype)[:, :, None].expand(-1, -1, x.shape[2], -1) for t in (C, B))
        y, final = scan(
            queries,
            keys,
            (x * dt[..., None]).to(x.dtype),
            g=dt * A,
            scale=1.0,
            initial_state=state,
            output_final_state=need_state,
            state_v_first=True,
        )
        if D is not None:
            y = torch.addcmul(y.to(dt.dtype), D.to(dt.dtype)[:, None], x.to(dt.dtype)).to(x.dtype)
    return y, final.float() if need_state else None


class Package(NamedTuple):
    """A package's kernel: how it is found, what installs it, and what calls it."""

    find: Callable[[], optional.Kernel]
    install: str
    scan: Callable[[Scanned, int | None, bool], tuple[Tensor, Tensor | None]]


KERNELS = {  # in the order in which `auto` looks for them
    "mamba_ssm": Package(optional.mamba_ssm_scan, "pip install mamba-ssm --no-build-isolation", _scan_mamba_ssm),
    "fla": Package(optional.fla_scan, "pip install fla-core", _scan_fla),
}
SCANS = {"plain": scan_plain.scan, "torch": scan_torch.scan, **{name: kernel.scan for name, kernel in KERNELS.items()}}
