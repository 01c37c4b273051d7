"""The torch back end of `ssd_scan`: Mamba-2's state-space duality as matrix products, forward and backward.

With `c` the running sum of `dt A` inside a chunk, `i` the token that reads and `j <= i` the one that wrote, a chunk
with the state `h` before it does (Dao & Gu 2024, arXiv:2405.21060, Sections 6 and 7)

    y_i = sum_j exp(c_i - c_j) (C_i . B_j) dt_j x_j  +  exp(c_i) h C_i  +  D x_i
    h'  = exp(c_end) h  +  sum_j exp(c_end - c_j) dt_j x_j B_j^T

Every exponent is at most 0, so no decay is too stiff. `C_i . B_j` is shared by the heads. Layouts are such that no
product needs a transposed copy, except of x once in backward: MKL is several times slower where the right factor of a
batch of small products is transposed.

Shapes: `B` batch, `c` chunks, `q` tokens of a chunk, `H` heads, `P` head size, `N` SSM state.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_SIZE = 64
# exp of what lies below is taken as exp(-60) = 9e-27, less than the rounding of fp32 and fp64: far faster than letting
# exp underflow, because denormal numbers are slow both to make and to multiply.
_MIN_EXPONENT = -60.0
# Steps are at least that long, so that backward may divide by them.
_MIN_STEP = 1e-20
# Elements of the largest temporary tensors. On a CPU they should stay in its cache; elsewhere fewer launches count.
_BLOCK_ELEMENTS_CPU, _BLOCK_ELEMENTS_OTHER = 1 << 17, 1 << 26

Group = tuple[slice, slice]  # sequences and chunks that are worked on at once


def chunk_bounds(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of consecutive chunks of `size`, the last one maybe shorter."""
    return ((start, min(start + size, length)) for start in range(0, length, size))


def scan(x, dt, A, B, C, D, state, chunk_size: int, need_state: bool) -> tuple[Tensor, Tensor | None]:
    """`ssd_scan` without the choice of a back end: same arguments, same results."""
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled():
            return _Scan.apply(x, dt, A, B, C, D, state, chunk_size, need_state)
        return _forward(x, dt, A, B, C, D, state, chunk_size, need_state)[:2]


def _decay(exponent: Tensor) -> Tensor:
    return exponent.clamp_(_MIN_EXPONENT, 0.0).exp_()


class _Part:
    """Chunks of one length: their inputs, and what is small enough to be made for all of them at once."""

    def __init__(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, tokens: slice, q: int) -> None:
        self.tokens, self.q = tokens, q
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.x = self.chunked(x)  # (B, c, q, H, P), still in its own dtype
        self.batch, self.chunks, _, self.heads, self.headdim = self.x.shape
        self.B, self.C = self.chunked(B).to(self.dtype), self.chunked(C).to(self.dtype)  # (B, c, q, N)
        self.dt = self.chunked(dt).to(self.dtype).mT.contiguous().clamp(min=_MIN_STEP)  # (B, c, H, q)
        # A step below the least exponent forgets all that was; cut off it does not cost the sum its precision.
        self.cum = (self.dt * A.to(self.dtype)[:, None]).clamp_(min=_MIN_EXPONENT).cumsum(-1)

    @cached_property
    def decay_from_start(self) -> Tensor:
        """What each token still sees of the state before the chunk, `(B, c, H, q)`."""
        return _decay(self.cum.clone())

    @cached_property
    def decay_to_end(self) -> Tensor:
        """What is left of each token at the end of the chunk, `(B, c, H, q)`."""
        return _decay(self.cum[..., -1:] - self.cum)

    def chunked(self, x: Tensor) -> Tensor:
        """`(B, L, ...)` as a view `(B, c, q, ...)`."""
        return x[:, self.tokens].unflatten(1, (-1, self.q))

    def heads_first(self, x: Tensor) -> Tensor:
        """`(b, c, q, H, P)` as `(b c H, q, P)`: a view of a single chunk, a copy of several."""
        return x.to(self.dtype).transpose(2, 3).reshape(-1, self.q, self.headdim)

    def tokens_first(self, x: Tensor, like: Tensor) -> Tensor:
        """`(b c H, P, q)` as a view with the shape of `like`, `(b, c, q, H, P)`."""
        return x.view(*like.shape[:2], self.heads, self.headdim, self.q).permute(0, 1, 4, 2, 3)

    def groups(self, first_alone: bool, last_alone: bool) -> list[Group]:
        """The chunks in groups, sequences outside: a first chunk without a state and a last one that leaves none apart.

        Sizes are such that the temporary tensors stay small, and their number too.
        """
        limit = _BLOCK_ELEMENTS_CPU if self.x.device.type == "cpu" else _BLOCK_ELEMENTS_OTHER
        fit = max(1, limit // (self.heads * self.q * max(self.q, self.headdim)))
        cuts = {0, self.chunks} | ({1} if first_alone else set()) | ({self.chunks - 1} if last_alone else set())
        spans = [
            (low + start, low + stop)
            for low, high in pairwise(sorted(cuts))
            for start, stop in chunk_bounds(high - low, fit)
        ]
        sequences = max(1, fit // max(stop - start for start, stop in spans))
        return [(slice(*rows), slice(*span)) for rows in chunk_bounds(self.batch, sequences) for span in spans]


def _parts(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> list[_Part]:
    """All whole chunks, and the rest."""
    length = x.shape[1]
    whole = length - length % chunk_size
    bounds = ((0, whole, chunk_size), (whole, length, length - whole))
    return [_Part(x, dt, A, B, C, slice(low, high), q) for low, high, q in bounds if high > low]


def _forward(x, dt, A, B, C, D, h, chunk_size, need_state) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """The scan without autograd, and the state before every chunk in groups, as backward needs it."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    parts, kept = _parts(x, dt, A, B, C, chunk_size), []
    D = None if D is None else D.to(parts[0].dtype)[:, None]
    for part in parts:
        leaves_state = need_state or part is not parts[-1]
        # Tokens j that write before tokens i that read, so that x need not be transposed.
        scores = (part.B @ part.C.mT).triu_()
        out, ends = part.chunked(y), []
        for rows, chunks in part.groups(h is None, not leaves_state):
            if chunks.start == 0:
                carry = None if h is None else h[rows].to(part.dtype)
            last = chunks.stop == part.chunks
            before, carry = _forward_group(part, (rows, chunks), scores, D, carry, leaves_state or not last, out)
            kept.append(before)
            if last:
                ends.append(carry)
        if leaves_state:
            h = ends[0] if len(ends) == 1 else torch.cat(ends)
    return y, h if need_state else None, kept


def _forward_group(
    part: _Part, group: Group, scores: Tensor, D: Tensor | None, carry: Tensor | None, write: bool, out: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Writes the group's outputs; returns the states before its chunks and the one after."""
    x, cum, out = part.heads_first(part.x[group]), part.cum[group], out[group]
    matrix = _decay(cum[..., None, :] - cum[..., :, None])
    matrix.mul_(scores[group][:, :, None]).mul_(part.dt[group][..., None])
    if D is not None:
        matrix.diagonal(dim1=-2, dim2=-1).add_(D)
    y = torch.bmm(x.mT, matrix.view(-1, part.q, part.q))  # (b c H, P, q)

    before = None if carry is None else carry[:, None]
    if write:
        weights = part.decay_to_end[group] * part.dt[group]
        written = part.B[group][:, :, None] * weights[..., None]
        states = torch.bmm(x.mT, written.view(-1, *written.shape[3:]))
        states = states.view(*cum.shape[:3], *states.shape[1:])  # (b, c, H, P, N)
        keep = part.decay_from_start[group][..., -1:, None]
        for number in range(states.shape[1]):
            if carry is not None:
                states[:, number].addcmul_(carry, keep[:, number])
            carry = states[:, number]
        if states.shape[1] > 1:  # then there is a state before
            before = torch.cat([before, states[:, :-1]], dim=1)
            carry = carry.clone()  # a view would keep all of them alive
    if before is not None:
        read = part.C[group].mT[:, :, None] * part.decay_from_start[group][..., None, :]
        torch.baddbmm(y, before.flatten(0, 2), read.view(-1, *read.shape[3:]), out=y)
    out.copy_(part.tokens_first(y, out))
    return before, carry


class _Scan(torch.autograd.Function):
    """The scan with a backward of its own: it keeps the states between chunks and recomputes what is cheap."""

    @staticmethod
    def forward(ctx: Any, x, dt, A, B, C, D, state, chunk_size, need_state):
        y, final, kept = _forward(x, dt, A, B, C, D, state, chunk_size, need_state)
        ctx.save_for_backward(x, dt, A, B, C, D, *kept)
        ctx.chunk_size, ctx.need_state = chunk_size, need_state
        ctx.state_dtype = None if state is None else state.dtype
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dh: Tensor | None):
        x, dt, A, B, C, D, *kept = ctx.saved_tensors
        dy = torch.zeros_like(x) if dy is None else dy
        grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, dt, B, C)]
        dA, dD = torch.zeros_like(A), None if D is None else torch.zeros_like(D)
        with torch.autocast(x.device.type, enabled=False):
            parts = _parts(x, dt, A, B, C, ctx.chunk_size)
            for number, part in reversed(list(enumerate(parts))):
                backward = _PartBackward(part, dy, D, grads[0])
                leaves_state = ctx.need_state or part is not parts[-1]
                groups = part.groups(number == 0 and ctx.state_dtype is None, not leaves_state)
                starts = []
                for rows, chunks in reversed(groups):
                    if chunks.stop == part.chunks:
                        after = None if dh is None else dh[rows].to(part.dtype)
                    after = backward.group((rows, chunks), kept.pop(), after)
                    if chunks.start == 0:
                        starts.insert(0, after)
                dh = None if starts[0] is None else torch.cat(starts)
                backward.finish(A, grads, dA, dD)
        dx, ddt, dB, dC = grads
        dstate = None if ctx.state_dtype is None else dh.to(ctx.state_dtype)
        return dx, ddt, dA, dB, dC, dD, dstate, None, None


class _PartBackward:
    """Gradients of the chunks of one length, group by group; `finish` does for all what is small.

    With `f_ij` what flows through the decay from token j to token i > j, the decay of step t gets the sum over all
    `j < t <= i`. It is never formed from sums that share the diagonal `f_ii`, on which no decay acts: these would
    cancel only up to rounding, and under a stiff decay that is more than the gradient itself.
    """

    def __init__(self, part: _Part, dy: Tensor, D: Tensor | None, dx: Tensor) -> None:
        self.part, self.dy, self.dx = part, part.chunked(dy), part.chunked(dx)
        # Here the reading token i comes before the writing token j.
        self.scores = (part.C @ part.B.mT).tril_()
        self.skip = None if D is None else D.to(part.dtype)[:, None] / part.dt
        self.dscores = torch.empty_like(self.scores)
        # Through the state and, with dt, through the chunk's own matrix: from each token and to each token.
        self.sent, self.received, self.own, self.written, self.passed = torch.zeros_like(
            part.dt.expand(5, *part.dt.shape), memory_format=torch.contiguous_format
        )
        self.dB, self.dC = torch.zeros_like(part.B), torch.zeros_like(part.C)

    def group(self, group: Group, before: Tensor | None, after: Tensor | None) -> Tensor | None:
        """Gradients of a group, given the states before its chunks and the gradient of the one after its last.

        Returns the gradient of the state before its first chunk.
        """
        x, dy = self.part.heads_first(self.part.x[group]), self.part.heads_first(self.dy[group])
        dx = self._inside(group, x, dy)
        first = None
        if before is not None:
            after, first = self._through_state(group, dy, before, after)
        elif after is not None:
            after = after[:, None]
        if after is not None:
            self._into_state(group, x, dx, before, after)
        dt = self.part.dt[group].mT[..., None]
        out = self.dx[group]
        torch.mul(self.part.tokens_first(dx, out), dt, out=out)
        return first

    def _inside(self, group: Group, x: Tensor, dy: Tensor) -> Tensor:
        """What flows through the chunks' own matrices; returns the gradient of dt x, `(b c H, P, q)`."""
        part = self.part
        cum, dt, scores = part.cum[group], part.dt[group], self.scores[group][:, :, None]
        matrix = _decay(cum[..., :, None] - cum[..., None, :])  # (b, c, H, q, q)
        stepped = torch.mul(x.mT, dt.reshape(-1, 1, part.q), out=x.new_empty(x.mT.shape))
        flow = torch.bmm(dy, stepped).view(matrix.shape).mul_(matrix)
        torch.sum(flow, 2, out=self.dscores[group])
        diagonal = flow.diagonal(dim1=-2, dim2=-1)
        self.own[group] = diagonal
        diagonal.zero_()
        flow.mul_(scores)
        torch.sum(flow, -2, out=self.sent[group])
        torch.sum(flow, -1, out=self.received[group])

        matrix.mul_(scores)
        if self.skip is not None:
            matrix.diagonal(dim1=-2, dim2=-1).add_(self.skip[group])
        return torch.bmm(dy.mT, matrix.view(-1, part.q, part.q))

    def _through_state(
        self, group: Group, dy: Tensor, before: Tensor, after: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """What flows through the states before the chunks.

        Returns the gradients of the states after the chunks, and of the one before the first.
        """
        part = self.part
        decay, C = part.decay_from_start[group], part.C[group][:, :, None]
        dy = dy * decay.reshape(-1, part.q, 1)
        dread = torch.bmm(dy, before.flatten(0, 2)).view(*decay.shape, -1)  # (b, c, H, q, N)
        torch.sum(dread, 2, out=self.dC[group])
        self.received[group] += dread.mul_(C).sum(-1)

        read = C.expand(dread.shape).reshape(-1, *dread.shape[3:])
        dstates = torch.bmm(dy.mT, read).view(before.shape)
        afters = []
        for number in reversed(range(before.shape[1])):
            afters.insert(0, after)
            if after is not None:
                dstates[:, number].addcmul_(after, decay[:, number, :, -1:, None])
            after = dstates[:, number]
        if len(afters) == 1:
            return None if afters[0] is None else afters[0][:, None], after
        if afters[-1] is None:
            afters[-1] = torch.zeros_like(after)
        return torch.stack(afters, 1), after

    def _into_state(self, group: Group, x: Tensor, dx: Tensor, before: Tensor | None, after: Tensor) -> None:
        """What flows through the states after the chunks, whose gradients are `after`."""
        part = self.part
        keep, B, flat = part.decay_to_end[group], part.B[group], after.flatten(0, 2)
        write = (B.mT[:, :, None] * keep[..., None, :]).view(-1, B.shape[-1], part.q)
        torch.baddbmm(dx, flat, write, out=dx)
        dwrite = torch.bmm(x, flat).view(*keep.shape, -1)  # (b, c, H, q, N)
        dwrite.mul_((keep * part.dt[group])[..., None])
        torch.sum(dwrite, 2, out=self.dB[group])
        torch.sum(dwrite.mul_(B[:, :, None]), -1, out=self.written[group])
        if before is not None:
            passed = (after * before).sum((-1, -2))[..., None]
            self.passed[group] = passed * part.decay_from_start[group][..., -1:]

    def finish(self, A: Tensor, grads: list[Tensor], dA: Tensor, dD: Tensor | None) -> None:
        """Write the gradients of dt, B and C, and add those of A and D."""
        part = self.part
        _, ddt, dB, dC = (part.chunked(grad) for grad in grads)
        lower = torch.ones(part.q, part.q, dtype=part.dtype, device=A.device).tril_()
        decays = (self.received - self.sent) @ lower + self.written @ (1 - lower) + self.passed
        own = self.own * self.scores.diagonal(dim1=-2, dim2=-1)[:, :, None]
        steps = (self.sent + own + self.written) / part.dt
        ddt.copy_((steps + decays * A.to(part.dtype)[:, None]).mT)
        dA += (part.dt * decays).sum((0, 1, 3)).to(dA.dtype)
        if dD is not None:
            dD += (self.own / part.dt).sum((0, 1, 3)).to(dD.dtype)
        dscores = self.dscores.tril_()
        dB.copy_(self.dB.add_(dscores.mT @ part.C))
        dC.copy_(self.dC.add_(dscores @ part.B))
