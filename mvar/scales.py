"""The scale schedule: the one place that knows where a scale begins and ends in a token sequence.

An image is a pyramid of square token maps with the given sides, coarse to fine, concatenated in raster order.
Everything that touches such a sequence takes a `Span`: the scales `[first, last)` that the sequence holds.
"""

from dataclasses import dataclass, field
from itertools import accumulate

from mvar.errors import UserError, quoted


@dataclass(frozen=True)
class ScaleSchedule:
    """Sides of the token maps, e.g. `(1, 2, 3, 4)`: S = 4 scales, L = 1 + 4 + 9 + 16 = 30 tokens."""

    sides: tuple[int, ...]
    lengths: tuple[int, ...] = field(init=False, repr=False, compare=False)  # tokens of each scale, side_k squared
    offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)  # scale k holds offsets[k] : offsets[k + 1]

    def __post_init__(self) -> None:
        sides = tuple(self.sides)
        object.__setattr__(self, "sides", sides)
        if not sides or any(not isinstance(s, int) or s < 1 for s in sides) or list(sides) != sorted(sides):
            raise UserError(
                f"patch_sides: {quoted(list(sides))} is not a schedule; "
                "allowed: one or more positive integers, ascending"
            )
        lengths = tuple(side * side for side in sides)
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "offsets", (0, *accumulate(lengths)))

    @property
    def num_scales(self) -> int:
        """S, the number of scales."""
        return len(self.sides)

    @property
    def num_tokens(self) -> int:
        """L, the tokens of all scales."""
        return self.offsets[-1]

    @property
    def levels(self) -> tuple[int, ...]:
        """The scale of every token, L numbers; made when asked for: a file may claim a schedule of any length."""
        return tuple(k for k, length in enumerate(self.lengths) for _ in range(length))

    def span(self, first: int = 0, last: int | None = None) -> "Span":
        """The scales `[first, last)`; without arguments the whole image."""
        return Span(self, first, self.num_scales if last is None else last)

    def steps(self) -> "list[Span]":
        """One span a scale, coarse to fine: the steps of sampling."""
        return [self.span(k, k + 1) for k in range(self.num_scales)]


@dataclass(frozen=True)
class Span:
    """The scales `[first, last)` of a schedule, and where their tokens lie."""

    schedule: ScaleSchedule
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= self.schedule.num_scales:
            raise UserError(
                f"span: scales [{self.first}, {self.last}) are not in a schedule of {self.schedule.num_scales} scales"
            )

    @property
    def scales(self) -> range:
        """The scale numbers in the span."""
        return range(self.first, self.last)

    @property
    def start(self) -> int:
        """Tokens before the span."""
        return self.schedule.offsets[self.first]

    @property
    def stop(self) -> int:
        """Tokens up to the span's end, those before it included."""
        return self.schedule.offsets[self.last]

    @property
    def length(self) -> int:
        """Tokens in the span."""
        return self.stop - self.start

    @property
    def is_last(self) -> bool:
        """Whether nothing follows the span, so that no state has to be kept."""
        return self.last == self.schedule.num_scales

    def local(self, scale: int) -> slice:
        """Where a scale's tokens lie inside the span's own sequence."""
        offsets = self.schedule.offsets
        return slice(offsets[scale] - self.start, offsets[scale + 1] - self.start)

    def visible(self, scale: int, reach: int | None = None) -> int:
        """Tokens of scales 0..scale: what a query of this scale may see under block-causal attention.

        With `reach` those of the last so many scales, the own one included.
        """
        return self.schedule.offsets[scale + 1] - self.unseen(scale, reach)

    def unseen(self, scale: int, reach: int | None = None) -> int:
        """Tokens of the scales that lie too far back for a query of this scale; 0 where every coarser one is seen."""
        return 0 if reach is None else self.schedule.offsets[max(0, scale + 1 - reach)]


# The schedules of VAR for 256, 512 and 1024 px with a tokenizer that downsamples 16 times, and the demo's.
PATCH_SIDES: dict[str, tuple[int, ...]] = {
    "digits": (1, 2, 3, 4),
    "256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "1024": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
