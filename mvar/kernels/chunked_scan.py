"""The torch back end of `ssd_scan`: Mamba-2's state-space duality as matrix products, forward and backward.

With `c` the running sum of `dt A` inside a chunk, `i` the token that reads and `j <= i` the one that wrote, a chunk
with the state `h` before it does (Dao & Gu 2024, arXiv:2405.21060, Sections 6 and 7)

    y_i = sum_j exp(c_i - c_j) (C_i . B_j) dt_j x_j  +  exp(c_i) h C_i  +  D x_i
    h'  = exp(c_end) h  +  sum_j exp(c_end - c_j) dt_j x_j B_j^T

Every exponent is at most 0, so no decay is too stiff. `C_i . B_j` is shared by the heads. So are `B` and `C` where
the state is written and read: with heads side by side each is one product a chunk, of `x` weighted by head. Inside,
states are `(B, N, H, P)` for that reason.

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
        # Writing tokens j after reading tokens i: (B, c, i, j).
        self.scores = (self.C @ self.B.mT).tril_()

    @cached_property
    def decay_from_start(self) -> Tensor:
        """What each token still sees of the state before the chunk, `(B, c, q, H, 1)`."""
        return _decay(self.cum.clone()).mT.contiguous()[..., None]

    @cached_property
    def keep(self) -> Tensor:
        """What is left of the state before a chunk at its end, `(B, c, 1, H, 1)`."""
        return self.decay_from_start[:, :, -1:]

    @cached_property
    def weights(self) -> Tensor:
        """What each token adds to the state at the end of the chunk: `dt` and the decay since, `(B, c, q, H, 1)`."""
        return (_decay(self.cum[..., -1:] - self.cum) * self.dt).mT.contiguous()[..., None]

    def chunked(self, x: Tensor) -> Tensor:
        """`(B, L, ...)` as a view `(B, c, q, ...)`."""
        return x[:, self.tokens].unflatten(1, (-1, self.q))

    def matrix(self, group: Group) -> Tensor:
        """The decays between tokens i and j, times `dt_j`: `(b, c, H, i, j)`; right for j <= i, finite elsewhere."""
        cum = self.cum[group]
        return _decay(cum[..., :, None] - cum[..., None, :]).mul_(self.dt[group][..., None, :])

    def heads_first(self, x: Tensor) -> Tensor:
        """`(b, c, q, H, P)` as `(b c H, q, P)`: a view of a single chunk, a copy of several."""
        return x.to(self.dtype).transpose(2, 3).reshape(-1, self.q, self.headdim)

    def tokens_first(self, x: Tensor, like: Tensor) -> Tensor:
        """`(b c H, q, P)` as a view with the shape of `like`, `(b, c, q, H, P)`."""
        return x.view(*like.shape[:2], self.heads, self.q, self.headdim).transpose(2, 3)

    def joined(self, x: Tensor) -> Tensor:
        """`(b, c, rows, H, P)` or `(b, c, rows, N)` as a batch of matrices, heads side by side."""
        return x.flatten(0, 1).flatten(2)

    def split(self, x: Tensor, like: Tensor) -> Tensor:
        """`(b c, rows, H P)` as a view `(b, c, rows, H, P)`, with `b` and `c` of `like`."""
        return x.view(*like.shape[:2], x.shape[1], self.heads, self.headdim)

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


def _inner(state: Tensor) -> Tensor:
    """A state `(B, H, P, N)` as the scan works on it, `(B, N, H, P)`, and back: a view either way."""
    return state.permute(0, 3, 1, 2)


def _outer(state: Tensor) -> Tensor:
    return state.permute(0, 2, 3, 1)


def _forward(x, dt, A, B, C, D, h, chunk_size, need_state) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """The scan without autograd; for backward also the states before every chunk and what was read of them."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    parts, kept = _parts(x, dt, A, B, C, chunk_size), []
    D = None if D is None else D.to(parts[0].dtype)[:, None]
    h = None if h is None else _inner(h)
    for part in parts:
        leaves_state = need_state or part is not parts[-1]
        out, ends = part.chunked(y), []
        for rows, chunks in part.groups(h is None, not leaves_state):
            if chunks.start == 0:
                carry = None if h is None else h[rows].to(part.dtype)
            last = chunks.stop == part.chunks
            before, carry = _states(part, (rows, chunks), carry, leaves_state or not last)
            kept += [before, _outputs(part, (rows, chunks), D, before, out[rows, chunks])]
            if last:
                ends.append(carry)
        if leaves_state:
            h = ends[0] if len(ends) == 1 else torch.cat(ends)
    return y, _outer(h) if need_state else None, kept


def _states(part: _Part, group: Group, carry: Tensor | None, write: bool) -> tuple[Tensor | None, Tensor | None]:
    """The states before a group's chunks `(b, c, N, H, P)`, and the one after, given the one before `(b, N, H, P)`."""
    before = None if carry is None else carry[:, None]
    if not write:
        return before, carry
    x = part.x[group]
    written = torch.bmm(part.joined(part.B[group]).mT, part.joined(x * part.weights[group]))
    states = part.split(written, x)
    keep = part.keep[group]
    for number in range(states.shape[1]):
        if carry is not None:
            states[:, number].addcmul_(carry, keep[:, number])
        carry = states[:, number]
    if states.shape[1] > 1:  # then there is a state before
        before = torch.cat([before, states[:, :-1]], dim=1)
        carry = carry.clone()  # a view would keep all of them alive
    return before, carry


def _outputs(part: _Part, group: Group, D: Tensor | None, before: Tensor | None, out: Tensor) -> Tensor | None:
    """Writes a group's outputs; returns what was read of the states, `(b, c, q, H, P)`."""
    matrix = part.matrix(group).mul_(part.scores[group][:, :, None])
    if D is not None:
        matrix.diagonal(dim1=-2, dim2=-1).add_(D)
    y = torch.bmm(matrix.view(-1, part.q, part.q), part.heads_first(part.x[group]))
    y = part.tokens_first(y, out)
    if before is None:
        out.copy_(y)
        return None
    read = part.split(torch.bmm(part.joined(part.C[group]), part.joined(before)), out)
    read.mul_(part.decay_from_start[group])
    if out.dtype == read.dtype:
        torch.add(y, read, out=out)
    else:
        out.copy_(y + read)
    return read


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
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        dh = None if dh is None else _inner(dh).contiguous()
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
                    read, before = kept.pop(), kept.pop()
                    after = backward.group((rows, chunks), before, read, after)
                    if chunks.start == 0:
                        starts.insert(0, after)
                dh = None if starts[0] is None else torch.cat(starts)
                backward.finish(A, grads, dA, dD)
        dx, ddt, dB, dC = grads
        dstate = None if ctx.state_dtype is None else _outer(dh).to(ctx.state_dtype)
        return dx, ddt, dA, dB, dC, dD, dstate, None, None


class _PartBackward:
    """Gradients of the chunks of one length, group by group; `finish` does for all what is small.

    With `f_ij` what flows through the decay from token j to token i > j, the decay of step t gets the sum over all
    `j < t <= i`. It is never formed from sums that share the diagonal `f_ii`, on which no decay acts: these would
    cancel only up to rounding, and under a stiff decay that is more than the gradient itself.
    """

    def __init__(self, part: _Part, dy: Tensor, D: Tensor | None, dx: Tensor) -> None:
        self.part, self.dy, self.dx = part, part.chunked(dy), part.chunked(dx)
        self.D = None if D is None else D.to(part.dtype)[:, None]
        self.dscores = torch.empty_like(part.scores)
        # Through the state and, with dt, through the chunk's own matrix: from each token and to each token.
        self.sent, self.received, self.own, self.written, self.passed = torch.zeros_like(
            part.dt.expand(5, *part.dt.shape), memory_format=torch.contiguous_format
        )
        self.dB, self.dC = torch.zeros_like(part.B), torch.zeros_like(part.C)

    def group(self, group: Group, before: Tensor | None, read: Tensor | None, after: Tensor | None) -> Tensor | None:
        """Gradients of a group, given the states before its chunks, what was read of them and the gradient of the one
        after its last.

        Returns the gradient of the state before its first chunk.
        """
        dx, first = self._inside(group), None
        if before is not None:
            after, first = self._through_state(group, before, read, after)
        elif after is not None:
            after = after[:, None]
        out = self.dx[group]
        if after is None:
            out.copy_(dx)
        else:
            into = self._into_state(group, before, after)
            if out.dtype == dx.dtype:
                torch.addcmul(dx, into, self.part.weights[group], out=out)
            else:
                out.copy_(torch.addcmul(dx, into, self.part.weights[group]))
        return first

    def _inside(self, group: Group) -> Tensor:
        """What flows through the chunks' own matrices; returns the gradient of x, `(b, c, q, H, P)`."""
        part, scores = self.part, self.part.scores[group][:, :, None]
        dy, matrix = part.heads_first(self.dy[group]), part.matrix(group)
        # copied, because a right factor that is transposed costs MKL several times the product on some processors
        turned = part.heads_first(part.x[group]).mT.contiguous()
        flow = torch.bmm(dy, turned).view(matrix.shape).mul_(matrix)
        torch.sum(flow, 2, out=self.dscores[group])
        diagonal = flow.diagonal(dim1=-2, dim2=-1)
        self.own[group] = diagonal
        diagonal.zero_()
        flow.mul_(scores)
        torch.sum(flow, -2, out=self.sent[group])
        torch.sum(flow, -1, out=self.received[group])

        matrix.mul_(scores)
        if self.D is not None:
            matrix.diagonal(dim1=-2, dim2=-1).add_(self.D)
        dx = torch.bmm(matrix.view(-1, part.q, part.q).mT, dy)
        return part.tokens_first(dx, self.dx[group])

    def _through_state(
        self, group: Group, before: Tensor, read: Tensor, after: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """What flows through the states before the chunks.

        Returns the gradients of the states after the chunks, and of the one before the first.
        """
        part, dy = self.part, self.dy[group]
        self.received[group] += (dy * read).sum(-1).mT
        faded = part.joined(dy * part.decay_from_start[group])
        torch.bmm(faded, part.joined(before).mT, out=self.dC[group].flatten(0, 1))
        dstates = part.split(torch.bmm(part.joined(part.C[group]).mT, faded), before)
        keep, afters = part.keep[group], []
        for number in reversed(range(before.shape[1])):
            afters.insert(0, after)
            if after is not None:
                dstates[:, number].addcmul_(after, keep[:, number])
            after = dstates[:, number]
        if len(afters) == 1:
            return None if afters[0] is None else afters[0][:, None], after
        if afters[-1] is None:
            afters[-1] = torch.zeros_like(after)
        return torch.stack(afters, 1), after

    def _into_state(self, group: Group, before: Tensor | None, after: Tensor) -> Tensor:
        """What flows through the states after the chunks, whose gradients are `after` `(b, c, N, H, P)`.

        Returns the gradient of each token's contribution, `(b, c, q, H, P)`, before its weight.
        """
        part = self.part
        states = part.joined(after)
        weighted = part.x[group] * part.weights[group]
        into = part.split(torch.bmm(part.joined(part.B[group]), states), weighted)
        self.dB[group] = torch.bmm(part.joined(weighted), states.mT).view(self.dB[group].shape)
        self.written[group] = weighted.mul_(into).sum(-1).mT
        if before is not None:
            passed = (after * before).sum((2, 4), keepdim=True) * part.keep[group]  # (b, c, 1, H, 1)
            self.passed[group] = passed[:, :, 0]
        return into

    def finish(self, A: Tensor, grads: list[Tensor], dA: Tensor, dD: Tensor | None) -> None:
        """Write the gradients of dt, B and C, and add those of A and D."""
        part = self.part
        _, ddt, dB, dC = (part.chunked(grad) for grad in grads)
        lower = torch.ones(part.q, part.q, dtype=part.dtype, device=A.device).tril_()
        decays = (self.received - self.sent) @ lower + self.written @ (1 - lower) + self.passed
        own = self.own * part.scores.diagonal(dim1=-2, dim2=-1)[:, :, None]
        steps = (self.sent + own + self.written) / part.dt
        ddt.copy_((steps + decays * A.to(part.dtype)[:, None]).mT)
        dA += (part.dt * decays).sum((0, 1, 3)).to(dA.dtype)
        if dD is not None:
            dD += (self.own / part.dt).sum((0, 1, 3)).to(dD.dtype)
        dscores = self.dscores.tril_()
        dB.copy_(self.dB.add_(dscores.mT @ part.C))
        dC.copy_(self.dC.add_(dscores @ part.B))
