"""The chunks of a scan: how a sequence is cut, the decays inside a chunk, and the layouts that products need.

Shapes: see `scan_torch`.
"""

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

CHUNK_SIZE = 64
# Lengths that one of these divides are cut without a rest, which would cost as many operations as all whole chunks.
_NEAR_CHUNK_SIZES = (64, 60, 68, 56, 72, 52, 76, 48, 80)
# Decays are powers of two: on CPUs torch's exp2 takes half the time of its exp.
_LOG2_E = math.log2(math.e)
# What lies below is taken as 2^-86 = 1e-26, less than the rounding of fp32 and fp64: far faster than letting exp2
# underflow, because denormal numbers are slow both to make and to multiply.
_MIN_EXPONENT = -86.0
_GRID = 64  # of the coarse exponents, a power of two: up to 2^18 they and their differences are exact in fp32
# Steps are at least that long, so that backward may divide by them.
_MIN_STEP = 1e-20
# Elements of the largest temporary tensors. On a CPU they should stay in its cache; elsewhere fewer launches count.
_BLOCK_ELEMENTS_CPU, _BLOCK_ELEMENTS_OTHER = 3 << 17, 1 << 26

Group = tuple[slice, slice]  # sequences and chunks that are worked on at once


def choose_chunk_size(length: int) -> int:
    """Tokens of a chunk where none are asked for: near 64, and a divisor of the length if there is one."""
    return next((size for size in _NEAR_CHUNK_SIZES if length % size == 0), CHUNK_SIZE)


def chunk_bounds(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of consecutive chunks of `size`, the last one maybe shorter."""
    return ((start, min(start + size, length)) for start in range(0, length, size))


def _decay(exponent: Tensor) -> Tensor:
    return exponent.clamp_(_MIN_EXPONENT, 0.0).exp2_()


class Part:
    """Chunks of one length: their inputs, and what is small enough to be made for all of them at once."""

    def __init__(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, tokens: slice, q: int) -> None:
        self.tokens, self.q = tokens, q
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        self.x = self.chunked(x)  # (B, c, q, H, P), still in its own dtype
        self.batch, self.chunks, _, self.heads, self.headdim = self.x.shape
        self.B, self.C = self.chunked(B).to(self.dtype), self.chunked(C).to(self.dtype)  # (B, c, q, N)
        self.dt = self.chunked(dt).to(self.dtype).mT.contiguous().clamp(min=_MIN_STEP)  # (B, c, H, q)
        # A step below the least exponent forgets all that was; cut off it does not cost the sum its precision.
        self.cum = (self.dt.double() * (A.double() * _LOG2_E)[:, None]).clamp_(min=_MIN_EXPONENT).cumsum(-1)
        # Writing tokens j after reading tokens i: (B, c, i, j).
        self.scores = (self.C @ self.B.mT).tril_()

    @cached_property
    def decay_from_start(self) -> Tensor:
        """What each token still sees of the state before the chunk, `(B, c, q, H, 1)`."""
        return _decay(self.cum.to(self.dtype, copy=True)).mT.contiguous()[..., None]

    @cached_property
    def keep(self) -> Tensor:
        """What is left of the state before a chunk at its end, `(B, c, 1, H, 1)`."""
        return self.decay_from_start[:, :, -1:]

    @cached_property
    def weights(self) -> Tensor:
        """What each token adds to the state at the end of the chunk: `dt` and the decay since, `(B, c, q, H, 1)`."""
        return (_decay((self.cum[..., -1:] - self.cum).to(self.dtype)) * self.dt).mT.contiguous()[..., None]

    @cached_property
    def coarse(self) -> Tensor:
        """The running sum rounded such that its differences are exact, in fp32 too, `(B, c, H, q)` in fp64.

        A decay from j to i is then exp2(fine_i) exp2(coarse_i - coarse_j) exp2(-fine_j): the outer factors are taken
        into what is read by token and into `dt`.
        """
        return self.cum.mul(_GRID).round_().div_(_GRID)

    @cached_property
    def fine(self) -> Tensor:
        """The power of what rounding left of the running sum, nearly 1, `(B, c, H, q)`."""
        return (self.cum - self.coarse).to(self.dtype).exp2_()

    @cached_property
    def fine_by_token(self) -> Tensor:
        """`fine` as `(B, c, q, H, 1)`."""
        return self.fine.mT.contiguous()[..., None]

    def chunked(self, x: Tensor) -> Tensor:
        """`(B, L, ...)` as a view `(B, c, q, ...)`."""
        return x[:, self.tokens].unflatten(1, (-1, self.q))

    def matrix(self, group: Group) -> Tensor:
        """The decays between tokens i and j, times `dt_j`: `(b, c, H, i, j)`; right for j <= i, finite elsewhere.

        What stands here is to be multiplied by `fine_by_token` on the side of i.
        """
        coarse = self.coarse[group].to(self.dtype)
        return _decay(coarse[..., :, None] - coarse[..., None, :]).mul_(
            (self.dt[group] / self.fine[group])[..., None, :]
        )

    def add_skip(self, matrix: Tensor, group: Group, D: Tensor | None) -> Tensor:
        """Add the skip connection `(H, 1)` to a `matrix`."""
        if D is not None:
            matrix.diagonal(dim1=-2, dim2=-1).add_(D / self.fine[group])
        return matrix.view(-1, self.q, self.q)

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

    def groups(self) -> list[Group]:
        """The chunks in groups of nearly one size, sequences outside: the temporary tensors stay small, and few."""
        limit = _BLOCK_ELEMENTS_CPU if self.x.device.type == "cpu" else _BLOCK_ELEMENTS_OTHER
        fit = max(1, limit // (self.heads * self.q * max(self.q, self.headdim)))
        size = -(-self.chunks // -(-self.chunks // fit))
        rows, spans = chunk_bounds(self.batch, max(1, fit // size)), list(chunk_bounds(self.chunks, size))
        return [(slice(*row), slice(*span)) for row in rows for span in spans]


def split_into_parts(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> list[Part]:
    """All whole chunks, and the rest."""
    length = x.shape[1]
    whole = length - length % chunk_size
    bounds = ((0, whole, chunk_size), (whole, length, length - whole))
    return [Part(x, dt, A, B, C, slice(low, high), q) for low, high, q in bounds if high > low]


def with_state_before(group: Group, before: Tensor) -> Group:
    """The chunks of a group that have a state before them: all, or all but the first."""
    rows, chunks = group
    return rows, slice(chunks.stop - before.shape[1], chunks.stop)
