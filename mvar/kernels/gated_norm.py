"""Gated RMSNorms: that of Mamba-2, forward and backward with few passes over memory, and that of gated linear heads."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`RMSNorm(y * silu(z))` over the last dimension: Mamba-2's norm with `norm_before_gate=False` and one group.

    The arithmetic is fp32, or fp64 for fp64 inputs.

    Args:
        y: `(..., width)`.
        z: `(..., width)`, the gate.
        weight: `(width,)`.
        eps: what is added to the mean square.

    Returns:
        `(..., width)` in the dtype of `z`.
    """
    if torch.compiler.is_compiling():
        return plain(y, z, weight, eps)
    return _GatedRMSNorm.apply(y, z, weight, eps)


def plain(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`gated_rms_norm` as it is defined: the reference, for compilers."""
    dtype = torch.promote_types(y.dtype, torch.float32)
    gated = y.to(dtype) * F.silu(z.to(dtype))
    return (gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps) * weight.to(dtype)).to(z.dtype)


def norm_then_gate(y: Tensor, z: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """`RMSNorm(y) * silu(z)`, each head by itself: the output of gated linear attention and of gated delta nets.

    Args:
        y: `(B, L, H, P)`.
        z: `(B, L, H * P)`, the gate.
        weight: `(P,)`, one for all heads.
        eps: what is added to the mean square.

    Returns:
        `(B, L, H * P)` in the dtype of `z`.
    """
    dtype = torch.promote_types(y.dtype, torch.float32)
    normed = F.rms_norm(y.to(dtype), weight.shape, weight.to(dtype), eps)
    return (normed.flatten(-2) * F.silu(z.to(dtype))).to(z.dtype)


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
        dtype = torch.promote_types(y.dtype, torch.float32)
        gated = F.silu(z.to(dtype)).mul_(y)
        square = torch.linalg.vector_norm(gated, dim=-1, keepdim=True).square_()
        scale = torch.rsqrt(square.div_(gated.shape[-1]).add_(eps))
        ctx.save_for_backward(y, z, weight, scale)
        return gated.mul_(scale).mul_(weight).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor):
        y, z, weight, scale = ctx.saved_tensors
        y_, z_, dout = y.to(scale.dtype), z.to(scale.dtype), dout.to(scale.dtype)
        gate = F.silu(z_)
        normed = (gate * y_).mul_(scale)
        product = dout * normed
        dweight = product.flatten(0, -2).sum(0)
        mean = product.mul_(weight).mean(-1, keepdim=True)
        dgated = (dout * weight).addcmul_(normed, mean, value=-1).mul_(scale)
        dz = torch.ops.aten.silu_backward(torch.mul(dgated, y_, out=product), z_)
        return dgated.mul_(gate).to(y.dtype), dz.to(z.dtype), dweight.to(weight.dtype), None
