"""What is explored: models with pictures, and the maps of a picture. All that page and widget show comes from here.

Shapes: `L` tokens, `S` scales, `C` code channels.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from torch import Tensor

from mvar.analysis.explorer.effects import Effects
from mvar.analysis.explorer.packed import Means, measure, pack
from mvar.escaping import one_line
from mvar.probes.single_maps import Part, each_map, parts_of
from mvar.scales import ScaleSchedule
from mvar.transformer import ScaleTransformer

SMALL = 64  # pixels: larger pictures are compressed with loss
QUALITY = 85
MEAN = "mean"  # in place of a head's number
Head = int | None


@dataclass(frozen=True)
class Picture:
    """An image as a model sees it."""

    name: str
    class_name: str
    label: Tensor  # ()
    inputs: Tensor  # (L - n_0, C)
    stages: np.ndarray  # (S, H, W, channels) uint8, decoded after every scale
    arguments: str  # of `mvar.explore`, that choose it

    def urls(self) -> list[str]:
        """The picture after every scale, as addresses that hold it."""
        return [_url(stage) for stage in self.stages]


@dataclass(frozen=True)
class Subject:
    """A model and pictures of it."""

    name: str
    load: str  # Python that loads it, once `mvar` is imported
    model: ScaleTransformer
    pictures: Sequence[Picture]
    effects: Effects

    @cached_property
    def parts(self) -> list[Part]:
        """The mixers of its layers."""
        return parts_of(self.model)

    @property
    def schedule(self) -> ScaleSchedule:
        """Its scales."""
        return self.model.schedule

    def heads(self, part: int) -> list[Head]:
        """What can be looked at in a mixer: None, the mean over heads, and each of them; of its reach None alone."""
        return [None, *range(self.parts[part].num_heads)]

    def describe(self) -> dict[str, Any]:
        """What page and widget know of it from the start, as JSON values."""
        return {
            "name": one_line(self.name),
            "load": self.load,
            "pattern": one_line(self.model.config.pattern),
            "parts": [
                {"layer": part.layer, "mixer": one_line(part.mixer), "kind": part.kind, "heads": part.num_heads}
                for part in self.parts
            ],
            "pictures": [
                {"name": one_line(p.name), "class": one_line(p.class_name), "arguments": p.arguments}
                for p in self.pictures
            ],
            "effects": self.effects.to_json(),
        }

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

        shown = self.pictures[picture]
        each_map(self.model, shown.label, shown.inputs, wanted, packed)

    def map(self, picture: int, part: int, head: Head) -> bytes:
        """One packed map."""
        found: list[bytes] = []
        self.maps(picture, {part: [head]}, lambda part, head, data, means: found.append(data))
        return found[0]

    def means(self, picture: int, kinds: Sequence[str]) -> dict[tuple[int, Head], Means]:
        """The means of all maps of a picture, of the mixers of these kinds; none of the maps is kept."""
        found: dict[tuple[int, Head], Means] = {}

        def measured(part: int, head: Head, blocks: Any) -> None:
            found[part, head] = measure(blocks, self.schedule)

        wanted = {number: self.heads(number) for number, part in enumerate(self.parts) if part.kind in kinds}
        shown = self.pictures[picture]
        each_map(self.model, shown.label, shown.inputs, wanted, measured)
        return found


def _url(image: np.ndarray) -> str:
    from PIL import Image

    picture, file = Image.fromarray(image if image.shape[2] == 3 else image[..., 0]), BytesIO()
    kind = "png" if max(picture.size) <= SMALL else "webp"
    picture.save(file, kind, quality=QUALITY)
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"
