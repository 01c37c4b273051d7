"""What is looked at: a picture, a mixer and head, a query; and, beside it, the same of another layer, head or model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mvar.analysis.explorer.subjects import MEAN, Head, Subject
from mvar.errors import UserError, one_of


@dataclass(frozen=True)
class Side:
    """One of the two that are seen side by side: numbers of a model, of a mixer of it, and of a head (None: mean)."""

    subject: int
    part: int
    head: Head = None

    def to_json(self) -> dict[str, Any]:
        """For the explorer's module."""
        return {"subject": self.subject, "part": self.part, "head": MEAN if self.head is None else self.head}


@dataclass(frozen=True)
class View:
    """Which picture and query are seen, and one side or two."""

    picture: int
    query: int
    sides: tuple[Side, ...]

    def to_json(self) -> dict[str, Any]:
        """For the explorer's module."""
        return {"picture": self.picture, "query": self.query, "sides": [side.to_json() for side in self.sides]}


def side_of(
    subjects: Sequence[Subject], run: int = 0, layer: int | None = None, mixer: str | None = None, head: Head = None
) -> Side:
    """The side that is meant.

    Args:
        subjects: the models.
        run: number of one.
        layer: None: its first one with attention maps, else the first.
        mixer: of a layer that has several; None: the first.
        head: None: the mean over heads.

    Raises:
        UserError: a run, layer, mixer or head that is not there.
    """
    if not 0 <= run < len(subjects):
        raise UserError(f"run: {run}; allowed: 0 to {len(subjects) - 1}")
    parts = list(enumerate(subjects[run].parts))
    if layer is None:
        layer = next((part.layer for _, part in parts if part.num_heads), 0)
    if not 0 <= layer < (depth := subjects[run].model.config.depth):
        raise UserError(f"layer: {layer}; allowed: 0 to {depth - 1}")
    of_layer = [(number, part) for number, part in parts if part.layer == layer]
    found = [(number, part) for number, part in of_layer if mixer in (None, part.mixer)]
    if not found:
        raise one_of("mixer", mixer, [part.mixer for _, part in of_layer])
    number, part = found[0]
    if head is not None and not 0 <= head < part.num_heads:
        heads = f"0 to {part.num_heads - 1}, None for their mean" if part.num_heads else "None: it has no maps"
        raise UserError(f"head: {head} of layer {layer}, {part.mixer}; allowed: {heads}")
    return Side(run, number, head)


def check_subjects(subjects: Sequence[Subject]) -> None:
    """Refuse models that cannot be looked at side by side.

    Raises:
        UserError: other scales, or another number of pictures.
    """
    sides = {subject.schedule.sides for subject in subjects}
    if len(sides) > 1:
        raise UserError(
            f"runs: scales {' and '.join(str(list(s)) for s in sorted(sides))}; allowed: runs of equal scales"
        )


def middle(subject: Subject) -> int:
    """The query that is seen first: the token in the middle of the finest scale."""
    side, first = subject.schedule.sides[-1], subject.schedule.offsets[-2]
    return first + (side // 2) * side + side // 2
