"""What cutting a layer or a head does, where `mvar knockout` has measured it: colours of the matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvar.probes.cut_text import Cut
from mvar.probes.knockout_kept import Knockout
from mvar.probes.single_maps import Part

PIECES = {"own": "keys", "coarser": "keys", "state": "state"}  # by target: what a mixer says that can be cut in it


@dataclass(frozen=True)
class Effects:
    """Changes in bits a token by target, then by the numbers of mixer and head; more than 0 is worse."""

    num_images: int = 0  # held-out ones that they were measured on
    changes: Mapping[str, Mapping[tuple[int, int | None], float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """For the explorer's module: `[mixer, head, change]` by target."""
        changes = {
            target: [[part, "mean" if head is None else head, float(f"{change:.6g}")] for (part, head), change in rows]
            for target, rows in ((target, found.items()) for target, found in (self.changes or {}).items())
        }
        return {"images": self.num_images, "changes": changes}


def effects_of(parts: Sequence[Part], measured: Knockout | None) -> Effects:
    """The effects that belong to a cell of the matrix: a mixer's, and of one with attention maps each head's.

    A cut of a whole layer is a mixer's only where no other mixer of that layer has what was cut.
    """
    if measured is None:
        return Effects()
    changes: dict[str, dict[tuple[int, int | None], float]] = {}
    for target, piece in PIECES.items():
        having = [(number, part) for number, part in enumerate(parts) if piece in part.module.cuts]
        for number, part in having:
            alone = sum(other.layer == part.layer for _, other in having) == 1
            for head in (None, *range(part.num_heads if piece == "keys" else 0)):
                cut = Cut(
                    target, layers=(part.layer,), heads=() if head is None else (head,),
                    mixer=None if alone else part.mixer,
                )  # fmt: skip
                if effect := measured.effects.get(cut.text):
                    changes.setdefault(target, {})[number, head] = effect.change
    return Effects(measured.num_images, changes)
