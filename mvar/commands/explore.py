"""`mvar explore`: one page on which attention is looked at with the mouse."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mvar.commands.checkpoint import CheckpointFiles, check_source, check_unused
from mvar.commands.options import Answer, InResults, Labels, Numbers, RunName, Word
from mvar.errors import OK, UserError, quoted, say
from mvar.files import check_place

if TYPE_CHECKING:
    from mvar.analysis.explorer.core import Explorer

Pictures = Annotated[
    tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FILE", help_behavior_hint="(repeatable)")
]
MOST_IMAGES, MOST_MB = 1000, 10_000


@dataclass(frozen=True)
class Explore(CheckpointFiles, InResults, Answer):
    """Write one HTML page on which attention is looked at with the mouse: where each token looks, over the picture.

    It needs no server and fetches nothing. A mixer without attention maps shows its reach instead: how strongly a
    token's output depends on every token.

    Example: `mvar explore digits-d8-w64-global --out explorer.html`
    """

    run: RunName = ""
    """Run id, a unique beginning of one, or the run's directory."""
    beside: Word = ""
    """Another run with the same scales, to be looked at beside it."""
    images: int = 4
    """Held-out images of different classes; of a checkpoint, images that it draws."""
    classes: Labels = ""
    """Instead, images of these classes that the model draws, e.g. 3,8."""
    seed: int = 0
    """Numbers the images that are drawn."""
    image: Pictures = ()
    """A picture of your own, in place of those."""
    image_class: Word = ""
    """The class that is given with pictures of your own; default: none."""
    layers: Numbers = ""
    """Layers whose maps are in the page, e.g. 0,3-5; default: all, or of models with more than 128 tokens four."""
    heads: Numbers = ""
    """Heads whose maps are in the page beside their mean, e.g. 0-3; default: all."""
    max_mb: float = 20
    """Largest size of the page, in 10^6 bytes: it gets as many maps as there is room for."""
    out: Path = Path("explorer.html")
    """The page to write."""

    def execute(self, arguments: list[str]) -> int:
        """Make the maps and write the page; returns the exit code."""
        self._check()
        layers, heads = _numbers("layers", self.layers), _numbers("heads", self.heads)
        explorer = self._opened()
        from mvar.runs.display import shown

        with shown("explore", "packing maps") as progress:
            kept = explorer.page(self.out, self.max_mb, layers, heads, progress)
        for line in kept.left_out:
            say(line)
        size, num_images = self.out.stat().st_size / 1e6, len(explorer.subjects[0].pictures)
        if self.json:
            answer = {"page": str(self.out), "size_mb": size, "maps": len(kept.maps), "images": num_images}
            self.answer(answer | {"peak_mib": kept.peak_mib, "left_out": kept.left_out})
        say(
            f"{self.out}: {size:.2f} MB, {len(kept.maps):,} maps of {num_images} images; "
            f"peak memory {kept.peak_mib:,.0f} MiB, the model in it"
        )
        return OK

    def _check(self) -> None:
        check_source(self.run, self.checkpoint)
        if self.run:
            check_unused(self)
        if not 1 <= self.images <= MOST_IMAGES:
            raise UserError(f"images: {self.images}; allowed: 1 to {MOST_IMAGES:,}")
        if not 0 < self.max_mb < MOST_MB:
            raise UserError(f"max-mb: {self.max_mb:g}; allowed: more than 0, less than {MOST_MB:,}")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed}; allowed: 0 or more")
        if self.image_class and not self.image:
            raise UserError("image-class: only for pictures of your own; allowed: with --image FILE")
        check_place("out", self.out)

    def _opened(self) -> "Explorer":
        from mvar.api.explored import COUNT, explore, heldout_of_classes
        from mvar.api.loading import load

        runs = [self.load(self.run, self.results)]
        if self.checkpoint:
            say(f"{self.checkpoint}: {runs[0].facts}")
        if self.beside:
            runs.append(load(self.beside, results=self.results))
        classes = [name.strip() for name in self.classes.split(",") if name.strip()]
        chosen: dict[str, Any] = {"seed": self.seed}
        if self.image:
            chosen |= {"file": self.image, "file_class": self.image_class or None}
        if classes:
            chosen["drawn"] = classes
        elif not self.image and self.images != COUNT:
            numbers = heldout_of_classes(runs[0], self.images)
            chosen |= {"image": numbers} if numbers else {"drawn": range(min(self.images, len(runs[0].class_names)))}
        return explore(*runs, **chosen)


def _numbers(what: str, text: str) -> list[int] | None:
    """`0,3-5` as numbers; None for an empty text."""
    if not text.strip():
        return None
    numbers: list[int] = []
    for word in text.split(","):
        first, _, last = (part.strip() for part in word.partition("-"))
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) - int(first) > 10_000:
            raise UserError(f"{what}: {quoted(text)}; allowed: numbers and ranges, e.g. 0,3-5")
        numbers += range(int(first), int(last or first) + 1)
    return sorted(set(numbers))
