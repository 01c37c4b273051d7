"""Exact attention over scale spans, without a mask tensor: each scale's queries meet only the keys they may see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvar.errors import UserError
from mvar.kernels import optional
from mvar.kernels.constants import is_rehearsal, kept_on_device
from mvar.scales import ScaleSchedule, Span

# What flash-attn has kernels for.
HALF = (torch.float16, torch.bfloat16)
WIDEST = 256  # of a head
AMPERE = (8, 0)  # compute capability, or a later one


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
    reach: int | None = None,
    backend: str = "auto",
    severed: Severed | None = None,
) -> Tensor:
    """Softmax attention of a span's queries, scale by scale: `softmax(q k^T) v` with no further scaling.

    Block-causal attention (VAR) is a slice per scale, the queries of scale k against the keys of scales 0..k. A dense
    mask would compute all L x L cells, 1.6 times as many at 256 px, and keep flash kernels out.

    Args:
        q: `(B, H, L, head_dim)`, the queries of the span.
        k, v: `(B, H, K, head_dim)`, the last K tokens up to the span's end: all that its first scale sees, or more.
        span: the scales that `q` holds.
        reach: scales that a query sees, its own included; None: all up to its own.
        backend: `torch`, which picks its flash kernels by itself, or `flash_attn`, which has kernels for bf16 and fp16
            alone: what is fp32 goes to torch. `auto`: torch, but where `takes_runs` says otherwise.
        severed: pairs that are cut; a scale that has some is computed by torch.

    Returns:
        `(B, H, L, head_dim)`.
    """
    attention = _flash_attn if backend == "flash_attn" else _torch
    inside = reach == 1 and k.shape[2] == span.length  # each scale sees itself alone
    has_kernel = q.dtype in HALF and q.shape[-1] <= WIDEST
    if inside and severed is None and len(span.scales) > 1 and has_kernel and takes_runs(backend, q.device):
        return _flash_attn_in_scales(q, k, v, span)
    # split, not slices: its backward is one concatenation instead of a zero-filled copy for every scale
    lengths = [span.schedule.lengths[scale] for scale in span.scales]
    queries = q.split(lengths, dim=2)
    first = span.stop - k.shape[2]  # the number of the first key's token
    if inside:
        keys, values = k.split(lengths, dim=2), v.split(lengths, dim=2)
    else:
        seen = [(span.unseen(scale, reach) - first, span.schedule.offsets[scale + 1] - first) for scale in span.scales]
        keys, values = (_overlapping(t, seen) for t in (k, v))
    parts = zip(queries, keys, values, strict=True)
    if severed is None:
        outputs = [attention(*part) for part in parts]
    else:
        at = [(span.schedule.offsets[scale], span.unseen(scale, reach)) for scale in span.scales]
        outputs = [attend_severed(*part, severed, *where, attention) for part, where in zip(parts, at, strict=True)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def takes_runs(backend: str, device: torch.device) -> bool:
    """Whether scales that each see themselves alone, in half precision, are one call of flash-attn.

    By `auto` too where it is installed and the GPU is one of its own; compiled layers stay with torch.
    """
    if backend != "auto":
        return backend == "flash_attn"
    if torch.compiler.is_compiling() or optional.flash_attention_of_runs() is None:
        return False
    return _is_its_gpu(device)


def _is_its_gpu(device: torch.device) -> bool:
    """Whether flash-attn runs there."""
    return device.type == "cuda" and (is_rehearsal() or torch.cuda.get_device_capability(device) >= AMPERE)


def _overlapping(x: Tensor, bounds: list[tuple[int, int]]) -> Sequence[Tensor]:
    """`x[:, :, start:stop]` of each: in training with one buffer for all of their gradients."""
    if torch.is_grad_enabled() and x.requires_grad and len(bounds) > 1 and not torch.compiler.is_compiling():
        return _Overlapping.apply(x, bounds)
    return [x[:, :, start:stop] for start, stop in bounds]


class _Overlapping(torch.autograd.Function):
    """By itself autograd fills a zero tensor of the whole size for every slice, and adds them all up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bounds: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        ctx.shape, ctx.bounds = x.shape, bounds
        ctx.set_materialize_grads(False)
        return tuple(x[:, :, start:stop] for start, stop in bounds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None):
        total = None
        # the last first, as autograd would: the same sums to the bit
        for grad, (start, stop) in reversed([*zip(grads, ctx.bounds, strict=True)]):
            if grad is None:
                continue
            if total is None:
                whole = (start, stop) == (0, ctx.shape[2])
                total = grad.clone() if whole else grad.new_zeros(ctx.shape)
                if whole:
                    continue
            total[:, :, start:stop].add_(grad)
        return total, None


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


def attend_chosen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    severed: Severed | None = None,
    first_query: int = 0,
    first_key: int = 0,
) -> Tensor:
    """Softmax attention where each query has a few keys of its own: `softmax(q k^T) v` over these alone.

    The keys are gathered, M for each query: for few of many. Every back end of `attend` wants shared keys, so it is
    always torch's.

    Args:
        q: `(B, H, L, head_dim)`.
        k, v: `(B, H, K, head_dim)`.
        index: `(L, M)`, the keys of each query.
        severed: pairs that are cut.
        first_query, first_key: with them: number of their first token in the image.

    Returns:
        `(B, H, L, head_dim)`.
    """
    if severed is not None:
        pairs = severed.of(first_query, q.shape[2], first_key, k.shape[2]).to(q.device)
        pairs = pairs.gather(-1, index.expand(len(pairs), -1, -1))
        others = severed.stand_in(k, v, first_key) if severed.stand_in else None  # recording asks with no pair cut
        if pairs.any():
            return _chosen_severed(q, k, v, index, pairs, others)
    one = q.flatten(0, 1)[:, :, None]  # each query is a sequence of one
    keys, values = (t.flatten(0, 1).index_select(1, index.flatten()).unflatten(1, index.shape) for t in (k, v))
    return _torch(one, keys, values).view_as(q)


def _chosen_severed(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, pairs: Tensor, others: tuple[Tensor, Tensor] | None
) -> Tensor:
    """`attend_chosen` without some of the chosen pairs, `(H or 1, L, M)`, or with what stands in for them."""
    scores = (q[:, :, :, None] * k[:, :, index]).sum(-1)  # (B, H, L, M)
    if others is None:
        weights = scores.masked_fill(pairs, -torch.inf).softmax(-1).nan_to_num(0.0)  # no key left: zeros
        return (weights[..., None] * v[:, :, index]).sum(-2)
    other_keys, other_values = (t[:, :, index] for t in others)
    weights = torch.where(pairs, (q[:, :, :, None] * other_keys).sum(-1), scores).softmax(-1)
    return (weights[..., None] * torch.where(pairs[..., None], other_values, v[:, :, index])).sum(-2)


def _torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if k.shape[2] == 1:  # the softmax over one key is 1: a 1 x 1 scale needs no kernel
        return v.expand_as(q)
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def _flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attention = _found(optional.flash_attention())
    if q.dtype not in HALF or k.shape[2] == 1:
        return _torch(q, k, v)
    _check_has_kernel(q)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    deterministic = torch.are_deterministic_algorithms_enabled()
    return attention(q, k, v, softmax_scale=1.0, deterministic=deterministic).transpose(1, 2)


def _flash_attn_in_scales(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    """Attention inside every scale of a span, all scales of all images in one call."""
    attention = _found(optional.flash_attention_of_runs())
    _check_has_kernel(q)
    batch, longest = q.shape[0], max(span.schedule.lengths[span.first : span.last])
    bounds = _bounds(span.schedule, span.first, span.last, batch, q.device)
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    deterministic = torch.are_deterministic_algorithms_enabled()
    y = attention(q, k, v, bounds, bounds, longest, longest, softmax_scale=1.0, deterministic=deterministic)
    return y.unflatten(0, (batch, -1)).transpose(1, 2)


@kept_on_device
def _bounds(schedule: ScaleSchedule, first: int, last: int, batch: int, device: torch.device) -> Tensor:
    """Where the scales of a batch's images begin and end, one after another: `(1 + batch * scales,)`."""
    span = schedule.span(first, last)
    ends = [end - span.start for end in schedule.offsets[first + 1 : last + 1]]
    ends = [image * span.length + end for image in range(batch) for end in ends]
    with torch.inference_mode(False):  # kept: the next call may want gradients
        return torch.tensor([0, *ends], dtype=torch.int32).to(device)


def _check_has_kernel(q: Tensor) -> None:
    if q.shape[-1] > WIDEST:
        problem = f"has no kernel for heads of {q.shape[-1]} channels, {WIDEST} at most"
    elif not torch.compiler.is_compiling() and not _is_its_gpu(q.device):
        problem = f"runs on GPUs from Ampere on alone, which {q.device} is not"
    else:
        return
    raise UserError(f"runtime.attention_backend: 'flash_attn' {problem}; allowed here: auto, torch")


def _found(kernel: optional.Kernel) -> Callable[..., Tensor]:
    if kernel is None:
        raise UserError(
            "runtime.attention_backend: 'flash_attn' is not installed; allowed here: auto, torch "
            "(or pip install flash-attn --no-build-isolation, on a machine with CUDA)"
        )
    return kernel
