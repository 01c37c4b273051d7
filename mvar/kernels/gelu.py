"""The tanh-approximated GELU of the feed-forward.

`tanh` is slow on CPUs. With `0.5 (1 + tanh(u)) = sigmoid(2 u)` the same function is `x sigmoid(x (a + b x^2))`, in half
the time.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_A = 2 * math.sqrt(2 / math.pi)
_B = 0.044715 * _A
_BLOCK_ELEMENTS = 1 << 18  # worked on at once: all passes find them in the processor's cache


def gelu(x: Tensor) -> Tensor:
    """`F.gelu(x, approximate="tanh")` of `(..., D)`, in fp32 at least. Without gradients `x` itself is overwritten."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    if torch.is_grad_enabled() and x.requires_grad:
        return _Gelu.apply(x)
    return _forward(x, x if x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format))


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    return x.reshape(-1).split(_BLOCK_ELEMENTS)


def _forward(x: Tensor, out: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    a = torch.tensor(_A, dtype=dtype)
    for block, result in zip(_blocks(x), _blocks(out), strict=True):
        value = block.to(dtype)
        gate = torch.addcmul(a, value, value, value=_B).mul_(value).sigmoid_()
        if result.dtype == dtype:
            torch.mul(gate, value, out=result)
        else:
            result.copy_(gate.mul_(value))
    return out


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _forward(x, torch.empty_like(x, memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(dy, *ctx.saved_tensors, approximate="tanh")
