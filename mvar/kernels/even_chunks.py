"""Sequences cut into chunks of one size, for recurrences whose chunks are matrix products.

Shapes: `B` batch, `L` tokens, `H` heads, `n` chunks, `c` tokens of a chunk.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class EvenChunks(NamedTuple):
    """`num` chunks of `size` tokens, of which fewer than `num` are padding at the end."""

    num: int
    size: int
    length: int

    @classmethod
    def of(cls, length: int, largest: int) -> "EvenChunks":
        """As few chunks of at most `largest` tokens as hold the sequence, and those as small as they can be."""
        num = -(-length // largest)
        return cls(num, -(-length // num), length)

    def cut(self, x: Tensor) -> Tensor:
        """`(B, L, H, ...)` as `(B, H, n, c, ...)`, zeros behind the last token."""
        return self._along(x.movedim(2, 1), 2)

    def cut_tokens(self, x: Tensor) -> Tensor:
        """`(B, L, ...)` as `(B, n, c, ...)`, zeros behind the last token."""
        return self._along(x, 1)

    def _along(self, x: Tensor, dim: int) -> Tensor:
        padding = self.num * self.size - self.length
        x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, padding)) if padding else x
        return x.unflatten(dim, (self.num, self.size))

    def join(self, chunks: Tensor) -> Tensor:
        """`(B, H, n, c, P)` as `(B, L, H, P)`."""
        return chunks.flatten(2, 3)[:, :, : self.length].movedim(1, 2)


def decayed_states(state: Tensor | None, kept: Iterable[Tensor], written: Iterable[Tensor]) -> list[Tensor]:
    """The states that the chunks leave one after another: `state kept + written`, from zeros where there is none."""
    states = []
    for keep, write in zip(kept, written, strict=True):
        state = write if state is None else torch.addcmul(write, keep, state)
        states.append(state)
    return states
