"""The tuned torch back end of `scan.ssd_scan`: Mamba-2's state-space duality as matrix products, forward and backward.

`scan_plain` is the reference. This one writes in place and in groups that a processor's cache holds, and has a backward
of its own.

With `c` the running sum of `dt A` inside a chunk, `i` the token that reads and `j <= i` the one that wrote, a chunk
with the state `h` before it does (Dao & Gu 2024, arXiv:2405.21060, Sections 6 and 7)

    y_i = sum_j exp(c_i - c_j) (C_i . B_j) dt_j x_j  +  exp(c_i) h C_i  +  D x_i
    h'  = exp(c_end) h  +  sum_j exp(c_end - c_j) dt_j x_j B_j^T

Every exponent is at most 0, so no decay is too stiff. `C_i . B_j` is shared by the heads. So are `B` and `C` where
the state is written and read: with heads side by side each is one product a chunk, of `x` weighted by head. Inside,
states are `(B, N, H, P)` for that reason.

What a chunk is stands in `scan_chunks`.

Shapes: `B` batch, `c` chunks, `q` tokens of a chunk, `H` heads, `P` head size, `N` SSM state.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvar.kernels.scan_chunks import Group, Part, choose_chunk_size, split_into_parts, with_state_before
from mvar.kernels.scan_plain import Scanned


def scan(scanned: Scanned, chunk_size: int | None, need_state: bool) -> tuple[Tensor, Tensor | None]:
    """`ssd_scan` without the choice of a back end: same results."""
    chunk_size = chunk_size or choose_chunk_size(scanned.x.shape[1])
    with torch.autocast(scanned.x.device.type, enabled=False):
        if torch.is_grad_enabled():
            return _Scan.apply(chunk_size, need_state, *scanned)
        return _forward(scanned, chunk_size, need_state)[:2]


def _store_sum(out: Tensor, term: Tensor, factor: Tensor, other: Tensor) -> None:
    """out = term + factor * other, in the dtype of `out`."""
    if out.dtype == term.dtype:
        torch.addcmul(term, factor, other, out=out)
    else:
        out.copy_(torch.addcmul(term, factor, other))


def _inner(state: Tensor) -> Tensor:
    """A state `(B, H, P, N)` as the scan works on it, `(B, N, H, P)`, and back: a view either way."""
    return state.permute(0, 3, 1, 2)


def _outer(state: Tensor) -> Tensor:
    return state.permute(0, 2, 3, 1)


def _forward(scanned: Scanned, chunk_size: int, need_state: bool) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """The scan without autograd; for backward also the states before every chunk and what was read of them."""
    x, dt, A, B, C, D, h = scanned
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    parts, kept = split_into_parts(x, dt, A, B, C, chunk_size), []
    D = None if D is None else D.to(parts[0].dtype)[:, None]
    h = None if h is None else _inner(h)
    for part in parts:
        leaves_state = need_state or part is not parts[-1]
        out, ends = part.chunked(y), []
        for rows, chunks in part.groups():
            if chunks.start == 0:
                carry = None if h is None else h[rows].to(part.dtype)
            last = chunks.stop == part.chunks
            before, carry = _states(part, (rows, chunks), carry, leaves_state or not last)
            kept += [before, _outputs(part, (rows, chunks), D, before, out[rows, chunks])]
            if last:
                ends.append(carry)
        if leaves_state:
            h = ends[0] if len(ends) == 1 else torch.cat(ends)
    return y, None if h is None or not need_state else _outer(h), kept


def _states(part: Part, group: Group, carry: Tensor | None, write: bool) -> tuple[Tensor | None, Tensor | None]:
    """The states before a group's chunks `(b, c, N, H, P)`, and the one after, given the one before `(b, N, H, P)`.

    Without one before the first chunk's is left out. `write` says whether the last chunk is to leave one.
    """
    rows, chunks = group
    first = None if carry is None else carry[:, None]
    writers = (rows, slice(chunks.start, chunks.stop if write else chunks.stop - 1))
    if writers[1].start == writers[1].stop:
        return first, None
    x = part.x[writers]
    written = torch.bmm(part.joined(part.B[writers]).mT, part.joined(x * part.weights[writers]))
    states = part.split(written, x)
    keep = part.keep[writers]
    for number in range(states.shape[1]):
        if carry is not None:
            states[:, number].addcmul_(carry, keep[:, number])
        carry = states[:, number]
    before, last = states[:, :-1] if write else states, states[:, -1]
    if first is not None:
        before = torch.cat([first, before], dim=1)
    last = last.clone() if write and states.shape[1] > 1 else last  # a view would keep all of them alive
    return before if before.shape[1] else None, last


def _outputs(part: Part, group: Group, D: Tensor | None, before: Tensor | None, out: Tensor) -> Tensor | None:
    """Writes a group's outputs; returns what was read of the states `before`, `(b, c, q, H, P)`."""
    matrix = part.add_skip(part.matrix(group).mul_(part.scores[group][:, :, None]), group, D)
    y = part.tokens_first(torch.bmm(matrix, part.heads_first(part.x[group])), out)
    fine = part.fine_by_token[group]
    if before is None:
        out.copy_(y * fine)
        return None
    readers = with_state_before(group, before)
    skipped = out.shape[1] - before.shape[1]
    out[:, :skipped] = y[:, :skipped] * fine[:, :skipped]
    out = out[:, skipped:]
    read = part.split(torch.bmm(part.joined(part.C[readers]), part.joined(before)), out)
    read.mul_(part.decay_from_start[readers])
    _store_sum(out, read, y[:, skipped:], fine[:, skipped:])
    return read


class _Scan(torch.autograd.Function):
    """The scan with a backward of its own: it keeps the states between chunks and recomputes what is cheap."""

    @staticmethod
    def forward(ctx: Any, chunk_size: int, need_state: bool, *tensors: Any) -> tuple[Tensor, Tensor | None]:
        scanned = Scanned(*tensors)
        y, final, kept = _forward(scanned, chunk_size, need_state)
        ctx.save_for_backward(*scanned[:-1], *kept)
        ctx.chunk_size, ctx.need_state = chunk_size, need_state
        ctx.state_dtype = None if scanned.state is None else scanned.state.dtype
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
            parts = split_into_parts(x, dt, A, B, C, ctx.chunk_size)
            for part in reversed(parts):
                backward = _PartBackward(part, dy, D, grads[0])
                starts = []
                for rows, chunks in reversed(part.groups()):
                    if chunks.stop == part.chunks:
                        after = None if dh is None else dh[rows].to(part.dtype)
                    read, before = kept.pop(), kept.pop()
                    after = backward.group((rows, chunks), before, read, after)
                    if chunks.start == 0:
                        starts.insert(0, after)
                dh = None if starts[0] is None else torch.cat(starts)
                backward.finish(A, grads, dA, dD)
        dx, ddt, dB, dC = grads
        dstate = None if dh is None or ctx.state_dtype is None else _outer(dh).to(ctx.state_dtype)
        return None, None, dx, ddt, dA, dB, dC, dD, dstate


class _PartBackward:
    """Gradients of the chunks of one length, group by group; `finish` does for all what is small.

    With `f_ij` what flows through the decay from token j to token i > j, the decay of step t gets the sum over all
    `j < t <= i`. It is never formed from sums that share the diagonal `f_ii`, on which no decay acts: these would
    cancel only up to rounding, and under a stiff decay that is more than the gradient itself.
    """

    def __init__(self, part: Part, dy: Tensor, D: Tensor | None, dx: Tensor) -> None:
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
        dx, out, first = self._inside(group), self.dx[group], None
        afters = None if after is None else after[:, None]
        if before is not None and read is not None:
            afters, first = self._through_state(group, before, read, after)
        if afters is None:
            out.copy_(dx)
            return first
        count = afters.shape[1]
        out[:, count:] = dx[:, count:]
        writers = (group[0], slice(group[1].start, group[1].start + count))
        into, weights = self._into_state(writers, afters), self.part.weights[writers]
        if before is not None:
            self._through_passing(group, before, afters)
        _store_sum(out[:, :count], dx[:, :count], into, weights)
        return first

    def _inside(self, group: Group) -> Tensor:
        """What flows through the chunks' own matrices; returns the gradient of x, `(b, c, q, H, P)`."""
        part, scores = self.part, self.part.scores[group][:, :, None]
        dy, matrix = part.heads_first(self.dy[group] * part.fine_by_token[group]), part.matrix(group)
        # copied, because a right factor that is transposed costs MKL several times the product on some processors
        turned = part.x[group].to(part.dtype).permute(0, 1, 3, 4, 2).reshape(-1, part.headdim, part.q)
        flow = torch.bmm(dy, turned).view(matrix.shape).mul_(matrix)
        torch.sum(flow, 2, out=self.dscores[group])
        diagonal = flow.diagonal(dim1=-2, dim2=-1)
        self.own[group] = diagonal
        diagonal.zero_()
        flow.mul_(scores)
        torch.sum(flow, -2, out=self.sent[group])
        torch.sum(flow, -1, out=self.received[group])

        dx = torch.bmm(part.add_skip(matrix.mul_(scores), group, self.D).mT, dy)
        return part.tokens_first(dx, self.dx[group])

    def _through_state(
        self, group: Group, before: Tensor, read: Tensor, after: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What flows through the states before the chunks.

        Returns the gradients of the states after the chunks that leave one, and of the one before the first, if any.
        """
        part, readers = self.part, with_state_before(group, before)
        dy = self.dy[readers]
        self.received[readers] += (dy * read).sum(-1).mT
        faded = part.joined(dy * part.decay_from_start[readers])
        self.dC[readers] = torch.bmm(faded, part.joined(before).mT).view(self.dC[readers].shape)
        dstates = part.split(torch.bmm(part.joined(part.C[readers]).mT, faded), before)
        keep, last = part.keep[readers], after
        for number in reversed(range(before.shape[1])):
            if after is not None:
                dstates[:, number].addcmul_(after, keep[:, number])
            after = dstates[:, number]
        first = after if readers == group else None
        afters = dstates if first is None else dstates[:, 1:]
        if last is not None:
            afters = torch.cat([afters, last[:, None]], dim=1)
        return afters if afters.shape[1] else None, first

    def _into_state(self, writers: Group, afters: Tensor) -> Tensor:
        """What flows through the states after the chunks, whose gradients are `afters` `(b, c, N, H, P)`.

        Returns the gradient of each token's contribution, `(b, c, q, H, P)`, before its weight.
        """
        part, states = self.part, self.part.joined(afters)
        weighted = part.x[writers] * part.weights[writers]
        into = part.split(torch.bmm(part.joined(part.B[writers]), states), weighted)
        self.dB[writers] = torch.bmm(part.joined(weighted), states.mT).view(self.dB[writers].shape)
        self.written[writers] = weighted.mul_(into).sum(-1).mT
        return into

    def _through_passing(self, group: Group, before: Tensor, afters: Tensor) -> None:
        """What flows through the decay of a state on its way over a chunk that has one before it and leaves one."""
        rows, chunks = group
        skipped, count = chunks.stop - chunks.start - before.shape[1], afters.shape[1]
        passing = (rows, slice(chunks.start + skipped, chunks.start + count))
        flow = (afters[:, skipped:] * before[:, : count - skipped]).sum((2, 4), keepdim=True)
        self.passed[passing] = (flow * self.part.keep[passing])[:, :, 0]

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
