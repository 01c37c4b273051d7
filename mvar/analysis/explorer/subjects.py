"""What is explored: models with pictures, and the maps of a picture. All that page and widget show comes from here.

Shapes: `L` tokens, `S` scales, `C` code channels.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mvar.analysis.explorer.effects import Effects
from mvar.analysis.explorer.packed import Means, measure, pack
from mvar.config import RuntimeConfig
from mvar.errors import UserError
from mvar.escaping import one_line
from mvar.probes.single_maps import Part, each_map, parts_of
from mvar.scales import ScaleSchedule
from mvar.training.numerics import precise
from mvar.transformer import ScaleTransformer

SMALL = 64  # pixels: larger pictures are compressed with loss
QUALITY = 85
MEAN = "mean"  # in place of a head's number
Head = int | None


class Python(NamedTuple):
    """Code on this machine, and on another one, to which a page is sent: without folders of this one."""

    here: str
    elsewhere: str


@dataclass(frozen=True)
class Picture:
    """An image as a model sees it."""

    name: str
    class_name: str
    label: Tensor  # ()
    inputs: Tensor  # (L - n_0, C)
    stages: np.ndarray  # (S, H, W, channels) uint8, decoded after every scale
    arguments: Python  # of `mvar.explore`, that choose it

    def urls(self) -> list[str]:
        """The picture after every scale, as addresses that hold it."""
        return [_url(stage) for stage in self.stages]


@dataclass(frozen=True)
class Subject:
    """A model and pictures of it."""

    name: str
    load: Python  # what loads it, once `mvar` is imported
    model: ScaleTransformer
    pictures: Sequence[Picture]
    effects: Effects
    runtime: RuntimeConfig = RuntimeConfig()

    @cached_property
    def parts(self) -> list[Part]:
        """The mixers of its layers."""
        return parts_of(self.model)

    @property
    def schedule(self) -> ScaleSchedule:
        """Its scales."""
        return self.model.schedule

    def scale_of(self, query: int) -> int:
        """The scale of a token.

        Raises:
            UserError: there is no such token.
        """
        if not 0 <= query < self.schedule.num_tokens:
            raise UserError(f"query: {query}; allowed: 0 to {self.schedule.num_tokens - 1}")
        return self.schedule.levels[query]

    def heads(self, part: int) -> list[Head]:
        """What can be looked at in a mixer: None, the mean over heads, and each of them; of its reach None alone."""
        return [None, *range(self.parts[part].num_heads)]

    def describe(self, sent: bool = False) -> dict[str, Any]:
        """What page and widget know of it from the start, as JSON values; sent: to another machine, as a page is.

        `sees` holds tables of how many tokens of each scale a token sees, a row for each token, coarse to fine up to
        its own scale. A part's `sees` is the number of its table: mixers that see the same share one.
        """
        tables: list[list[list[int]]] = []
        told = Python._fields.index("elsewhere" if sent else "here")
        return {
            "name": one_line(self.name),
            "load": self.load[told],
            "pattern": one_line(self.model.config.pattern),
            "parts": [
                {
                    "layer": part.layer,
                    "mixer": one_line(part.mixer),
                    "kind": part.kind,
                    "heads": part.num_heads,
                    "sees": _number(tables, self._sees(part)),
                }
                for part in self.parts
            ],
            "sees": tables,
            "pictures": [
                {"name": one_line(p.name), "class": one_line(p.class_name), "arguments": p.arguments[told]}
                for p in self.pictures
            ],
            "effects": self.effects.to_json(),
        }

    def _sees(self, part: Part) -> list[list[int]]:
        rows = part.sees(self.schedule).tolist()
        return [row[: level + 1] for row, level in zip(rows, self.schedule.levels, strict=True)]

    def maps(
        self, picture: int, wanted: Mapping[int, Sequence[Head]], take: Callable[[int, Head, bytes, Means], None]
    ) -> None:
        """Pack maps of a picture, one after the other.

        Args:
            picture: its number.
            wanted: by the number of a mixer heads, None for their mean.
            take: is given mixer, head, the packed map and its means.
        """

        def packed(part: int, head: Head, blocks: Any) -> None:
            take(part, head, *pack(blocks, self.schedule))

        self.each_map(picture, wanted, packed)

    def map(self, picture: int, part: int, head: Head) -> tuple[bytes, Means]:
        """One packed map, and its means."""
        found: list[tuple[bytes, Means]] = []
        self.maps(picture, {part: [head]}, lambda part, head, *packed: found.append(packed))
        return found[0]

    def means(self, picture: int, kinds: Sequence[str]) -> dict[tuple[int, Head], Means]:
        """The means of all maps of a picture, of the mixers of these kinds; none of the maps is kept."""
        found: dict[tuple[int, Head], Means] = {}

        def measured(part: int, head: Head, blocks: Any) -> None:
            found[part, head] = measure(blocks, self.schedule)

        wanted = {number: self.heads(number) for number, part in enumerate(self.parts) if part.kind in kinds}
        self.each_map(picture, wanted, measured)
        return found

    def each_map(
        self, picture: int, wanted: Mapping[int, Sequence[Head]], take: Callable[[int, Head, Any], None]
    ) -> None:
        """`single_maps.each_map` of a picture."""
        shown = self.pictures[picture]
        with precise(self.runtime):
            each_map(self.model, shown.label, shown.inputs, wanted, take)


def _number(values: list[Any], value: Any) -> int:
    """The place of a value in a list, to which it is added if it is not there."""
    if value not in values:
        values.append(value)
    return values.index(value)


def _url(image: np.ndarray) -> str:
    from PIL import Image

    picture, file = Image.fromarray(image if image.shape[2] == 3 else image[..., 0]), BytesIO()
    kind = "png" if max(picture.size) <= SMALL else "webp"
    picture.save(file, kind, quality=QUALITY)
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"
