"""Depthwise causal convolution that carries its tail, with an optional SiLU, forward and backward.

A sum of shifted products on the token-major layout: with K = 4 taps that is several times faster on a CPU than a
grouped `conv1d` and its backward, which want channels first. Shapes: `B` batch, `L` tokens, `K` taps.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvar.kernels import optional

# Elements of the temporary tensors on a CPU: they stay in its cache.
_BLOCK_ELEMENTS = 1 << 18


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    tail: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    backend: Literal["auto", "torch"] = "auto",
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution over the tokens that continues where an earlier part of the sequence ended.

    The arithmetic is fp32, or fp64 for fp64 inputs.

    Args:
        x: `(B, L, channels)`.
        weight: `(channels, 1, K)`, the last tap for the current token.
        bias: `(channels,)`.
        tail: `(B, K - 1, channels)`, the inputs before `x`, oldest first; None for zeros.
        activation: what follows the convolution.
        backend: `auto` takes causal-conv1d's kernel where it is installed and can run, else `torch`.

    Returns:
        The result `(B, L, channels)` and the tail for what follows, both in the dtype of `x`.
    """
    if backend == "auto" and not torch.compiler.is_compiling() and _fits_package(x, weight):
        return _package(x, weight, bias, tail, activation)
    if tail is None:
        tail = x.new_zeros(x.shape[0], weight.shape[-1] - 1, x.shape[2])
    if torch.compiler.is_compiling():
        return plain(x, weight, bias, tail, activation)
    if torch.is_grad_enabled():
        return _CausalConv.apply(x, weight, bias, tail, activation)
    return _forward(x, weight, bias, tail, activation, keep=False)[:2]


def plain(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, activation: Literal["silu"] | None = None
) -> tuple[Tensor, Tensor]:
    """`causal_conv` as it is defined: the reference, for compilers."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    padded, length = torch.cat([tail.to(x.dtype), x], dim=1), x.shape[1]
    shifted = (padded[:, k : k + length].to(dtype) * tap for k, tap in enumerate(weight[:, 0].T.to(dtype)))
    y = sum(shifted, bias.to(dtype))
    return (F.silu(y) if activation else y).to(x.dtype), padded[:, length:].clone()


def _fits_package(x: Tensor, weight: Tensor) -> bool:
    """Whether causal-conv1d is there and has a kernel for such tensors."""
    channels, _, width = weight.shape
    possible = x.is_cuda and x.dtype != torch.float64 and 2 <= width <= 4 and channels % 8 == 0
    return possible and optional.causal_conv1d() is not None


def _package(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None, activation: str | None
) -> tuple[Tensor, Tensor]:
    """By causal-conv1d, whose layout with channels last wants rows of a multiple of 8."""
    convolve, before = optional.causal_conv1d(), weight.shape[-1] - 1
    assert convolve
    if x.stride(2) != 1 or x.stride(0) % 8 or x.stride(1) % 8:
        x = x.contiguous()
    tail = None if tail is None else tail.to(x.dtype)
    states = None if tail is None else tail.mT
    y = convolve(x.mT, weight[:, 0], bias, initial_states=states, activation=activation).mT
    if x.shape[1] < before:
        tail = x.new_zeros(x.shape[0], before, x.shape[2]) if tail is None else tail
        return y, torch.cat([tail, x], dim=1)[:, x.shape[1] :]
    return y, x[:, x.shape[1] - before :].clone()


def _token_blocks(x: Tensor) -> list[tuple[int, int]]:
    size = x.shape[1] if x.device.type != "cpu" else max(1, _BLOCK_ELEMENTS // (x.shape[0] * x.shape[2]))
    return [(start, min(start + size, x.shape[1])) for start in range(0, x.shape[1], size)]


def _window(x: Tensor, tail: Tensor, start: int, stop: int) -> Tensor:
    """What the outputs `start` to `stop` see, in fp32 at least: `K - 1` tokens more, at first from the tail."""
    first = start - tail.shape[1]
    window = x[:, first:stop] if first >= 0 else torch.cat([tail[:, first:].to(x.dtype), x[:, :stop]], dim=1)
    return window.to(torch.promote_types(x.dtype, torch.float32))


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, activation: str | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Result, tail, and with `keep` what the activation was given."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    taps, bias = weight[:, 0].T.to(dtype).contiguous(), bias.to(dtype)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    before = torch.empty_like(y, dtype=dtype) if keep and activation else None
    in_place = before is None and y.dtype == dtype  # a block is then a view of the result
    for start, stop in _token_blocks(x):
        window, length = _window(x, tail, start, stop), stop - start
        block = (y if before is None else before)[:, start:stop]
        block = block if block.dtype == dtype else torch.empty_like(block, dtype=dtype)
        torch.addcmul(bias, window[:, :length], taps[0], out=block)
        for k in range(1, len(taps)):
            block.addcmul_(window[:, k : k + length], taps[k])
        if activation:
            block = F.silu(block, inplace=before is None)
        if not in_place:
            y[:, start:stop] = block
    end = torch.cat([tail.to(x.dtype), x[:, -tail.shape[1] :]], dim=1) if tail.shape[1] else tail
    return y, end[:, end.shape[1] - tail.shape[1] :].clone(), before  # a view would keep all the inputs alive


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor, activation: str | None):
        y, end, before = _forward(x, weight, bias, tail, activation, keep=True)
        ctx.save_for_backward(x, tail, weight, bias, before)
        ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dtail: Tensor | None):
        x, tail, weight, bias, before = ctx.saved_tensors
        dtype = torch.promote_types(x.dtype, torch.float32)
        taps = weight[:, 0].T.to(dtype).contiguous()
        width, length = len(taps), x.shape[1]
        dpadded = x.new_zeros(x.shape[0], length + width - 1, x.shape[2], dtype=dtype)
        dtaps, dbias = torch.zeros_like(taps), torch.zeros_like(taps[0])
        if dy is not None:
            for start, stop in _token_blocks(x):
                d = dy[:, start:stop].to(dtype)
                if before is not None:
                    d = torch.ops.aten.silu_backward(d, before[:, start:stop])
                window = _window(x, tail, start, stop)
                for k in range(width):
                    dtaps[k] += (d * window[:, k : k + stop - start]).sum((0, 1))
                    dpadded[:, start + k : stop + k].addcmul_(d, taps[k])
                dbias += d.sum((0, 1))
        if dtail is not None:
            dpadded[:, length:] += dtail
        dx = dpadded[:, width - 1 :].to(x.dtype)
        dweight = dtaps.T[:, None].to(weight.dtype)
        return dx, dweight, dbias.to(bias.dtype), dpadded[:, : width - 1].to(tail.dtype), None
