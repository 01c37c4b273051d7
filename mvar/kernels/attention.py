"""Exact attention over scale spans, without a mask tensor: each scale's queries meet only the keys they may see."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar.errors import UserError
from mvar.scales import Span


def attend(q: Tensor, k: Tensor, v: Tensor, span: Span, *, within_scale: bool, backend: str = "auto") -> Tensor:
    """Softmax attention of a span's queries, scale by scale: `softmax(q k^T) v` with no further scaling.

    Block-causal attention (VAR) is a slice per scale, the queries of scale k against the keys of scales 0..k. A dense
    mask would compute all L x L cells, 1.6 times as many at 256 px, and keep flash kernels out.

    Args:
        q: `(B, H, L, head_dim)`, the queries of the span.
        k, v: `(B, H, K, head_dim)`; with `within_scale` the span's own tokens (K = L), else all tokens up to the
            span's end (K = `span.stop`).
        span: the scales that `q` holds.
        within_scale: whether a scale sees itself only.
        backend: `torch` (also `auto`: torch picks its flash kernels by itself) or `flash_attn`.

    Returns:
        `(B, H, L, head_dim)`.
    """
    attention = _flash_attn if backend == "flash_attn" else _torch
    # split, not slices: its backward is one concatenation instead of a zero-filled copy for every scale
    lengths = [span.schedule.lengths[scale] for scale in span.scales]
    queries = q.split(lengths, dim=2)
    if within_scale:
        outputs = map(attention, queries, k.split(lengths, dim=2), v.split(lengths, dim=2))
    else:
        ends = [span.visible(scale) for scale in span.scales]
        outputs = (attention(x, k[:, :, :end], v[:, :, :end]) for x, end in zip(queries, ends, strict=True))
    outputs = list(outputs)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if k.shape[2] == 1:  # the softmax over one key is 1: a 1 x 1 scale needs no kernel
        return v.expand_as(q)
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def _flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]  optional
    except ImportError:
        raise UserError(
            "runtime.attention_backend: 'flash_attn' is not installed; allowed here: auto, torch "
            "(or pip install flash-attn --no-build-isolation, on a machine with CUDA)"
        ) from None
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return flash_attn_func(q, k, v, softmax_scale=1.0).transpose(1, 2)
