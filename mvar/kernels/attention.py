"""Exact attention over scale spans, without a mask tensor: each scale's queries meet only the keys they may see."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar.errors import UserError
from mvar.scales import Span


@dataclass(frozen=True)
class Severed:
    """Query-key pairs that attention does without, by an intervention on a trained model.

    Args:
        pairs: `(H, L, L)` booleans, or `(1, L, L)` for all heads: the pairs that are cut, by tokens of the whole image.
        stand_in: keys and values that the cut pairs see instead, of the same shape or of a batch of 1; called with
            the keys, the values and the number of the first key's token. None: cut pairs are masked before the
            softmax, so the others share all of the mass; a query that has no key left gets zeros.
    """

    pairs: Tensor
    stand_in: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None

    def of(self, first_query: int, num_queries: int, first_key: int, num_keys: int) -> Tensor:
        """The pairs `(H or 1, n, m)` between runs of tokens."""
        return self.pairs[:, first_query : first_query + num_queries, first_key : first_key + num_keys]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Span,
    *,
    within_scale: bool,
    backend: str = "auto",
    severed: Severed | None = None,
) -> Tensor:
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
        severed: pairs that are cut; a scale that has some is computed by torch.

    Returns:
        `(B, H, L, head_dim)`.
    """
    attention = _flash_attn if backend == "flash_attn" else _torch
    # split, not slices: its backward is one concatenation instead of a zero-filled copy for every scale
    lengths = [span.schedule.lengths[scale] for scale in span.scales]
    queries = q.split(lengths, dim=2)
    if within_scale:
        keys, values = k.split(lengths, dim=2), v.split(lengths, dim=2)
    else:
        ends = [span.visible(scale) for scale in span.scales]
        keys, values = ([t[:, :, :end] for end in ends] for t in (k, v))
    seen = zip(queries, keys, values, strict=True)
    if severed is None:
        outputs = [attention(*parts) for parts in seen]
    else:
        starts = [span.schedule.offsets[scale] for scale in span.scales]
        firsts = [(start, start if within_scale else 0) for start in starts]
        outputs = [attend_severed(*parts, severed, *at, attention) for parts, at in zip(seen, firsts, strict=True)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def attend_severed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    severed: Severed,
    first_query: int,
    first_key: int,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Attention of queries that all see the same keys, without the pairs that are cut.

    Args:
        q: `(B, H, n, head_dim)`, queries of neighbouring tokens.
        k, v: `(B, H, m, head_dim)`, of neighbouring tokens.
        severed: the pairs.
        first_query, first_key: number of their first token in the image.
        attention: computes what has no pair that is cut, to the same bytes as without an intervention; None: torch's.
    """
    pairs = severed.of(first_query, q.shape[2], first_key, k.shape[2]).to(q.device)
    others = severed.stand_in(k, v, first_key) if severed.stand_in else None
    if not pairs.any():
        return (attention or _torch)(q, k, v)
    if others is None:
        left = ~pairs.all(-1, keepdim=True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=~pairs | ~left, scale=1.0) * left
    weights = torch.where(pairs, q @ others[0].mT, q @ k.mT).softmax(-1)
    return (weights * ~pairs) @ v + (weights * pairs) @ others[1]


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
