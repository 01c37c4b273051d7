"""What a stored data set holds, found before anything is launched, and whether two readings of a folder differ.

Every name and size is looked at. Pictures are decoded where there are at most `SAMPLE` of them; of larger sets the
headers of so many, evenly spread, are read, and `HELDOUT_SAMPLE` held-out pictures are compared, by their bytes, with
training pictures of their size. What was looked at is said.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any, cast

from mvar.config import DataConfig
from mvar.data.crops import ImageSet
from mvar.data.folders import FolderSource, spelled
from mvar.data.sources.contract import StoredPictures, find, open_source
from mvar.data.splits import image_set

SAMPLE = 4096  # pictures: half a minute to decode
SHOWN_CLASSES = 6
HELDOUT_SAMPLE, SAME_SIZE = 256, 64  # held-out files; training files of its size that each is compared with
TRANSPARENT, ROTATED = "transparent pictures, put on white", "pictures turned as their EXIF orientation says"
OVERLAP = "held-out images that are also training images, left out of the near-copies' threshold"


@dataclass(frozen=True)
class Survey:
    """A data set as the second reading finds it."""

    stamp: str  # of names, sizes and times of change
    train: int
    heldout: int
    classes: int
    skipped: dict[str, int] = field(default_factory=dict)  # by reason
    links: int = 0  # files and folders reached through one
    modes: dict[str, int] = field(default_factory=dict)  # Pillow's names, of the pictures that were looked at
    looked_at: int = 0
    overlap: int = 0  # held-out images that are training images too, of those that were compared
    compared: int = 0
    differs: dict[str, int] = field(default_factory=dict)  # what the first reading does otherwise; empty: nothing
    class_names: tuple[str, ...] = ()  # by label; said, and not stored

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "class_names"}

    def line(self, config: DataConfig) -> str:
        """The summary in one line."""
        sampled = "" if self.looked_at == self.train + self.heldout else f" of {self.looked_at:,} looked at"
        parts = [
            f"{self.train:,} training and {self.heldout:,} held-out images of {self.classes:,} classes "
            f"(labels in order of {config.class_order}: {_labels(self.class_names)})",
            "modes " + ", ".join(f"{name} {count:,}" for name, count in sorted(self.modes.items())) + sampled,
            f"{self.links:,} links followed" if self.links else "",
            f"skipped {_counts(self.skipped)}" if self.skipped else "nothing skipped",
            f"{self.overlap:,} of {self.compared:,} held-out images compared are also training images",
        ]
        return f"data: {find(config.name).shown(config)}: {'; '.join(part for part in parts if part)}"

    def difference(self) -> str:
        """What the two readings do otherwise, as text."""
        return _counts(self.differs)


def _labels(names: Sequence[str]) -> str:
    """The first classes with their labels, and the last one."""
    told = [f"{label} {spelled(name)}" for label, name in enumerate(names)]
    return ", ".join(told if len(told) <= SHOWN_CLASSES else [*told[: SHOWN_CLASSES - 1], "...", told[-1]])


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counted.items())


def survey(
    config: DataConfig, known: Iterable[Mapping[str, Any]] = (), progress: Callable[[int, int], None] | None = None
) -> Survey:
    """Look at a data set that is not in memory.

    Args:
        config: of the data; its `reading` does not matter.
        known: documents of earlier surveys: the one of the same files is taken, and nothing is opened.
        progress: called with (pictures looked at, and compared; in all).

    Raises:
        UserError: as `load_images`; a picture that was looked at and cannot be used.
    """
    config = config.model_copy(update={"reading": 2})
    opened = open_source(config)
    roots = [cast(StoredPictures, pictures) for pictures in (opened.train, opened.heldout) if pictures is not None]
    stamp = ":".join(source.stamp() for source in roots)
    for document in known:
        if document.get("stamp") == stamp and (found := _read(document)):
            return replace(found, class_names=tuple(roots[0].class_names))
    train, heldout = (image_set(config, opened, split) for split in ("train", "heldout"))
    skipped: Counter[str] = sum((source.listing.skipped for source in roots), Counter())
    differs: Counter[str] = sum((source.listing.differs for source in roots), Counter())
    small = len(train) + len(heldout) <= SAMPLE
    done, total = (
        count(1),
        sum(map(len, _sampled(roots))) + (len(train) + len(heldout) if small else _compared(heldout)),
    )

    def step() -> None:
        if progress:
            progress(next(done), total)

    modes, details = _headers(roots, train.shorter_side, step)
    overlap, compared = (_same_pixels if small else _same_files)(train, heldout, step)
    differs += details
    if overlap and find(config.name).has_readings:
        differs[OVERLAP] = overlap
    return Survey(
        stamp=stamp,
        train=len(train),
        heldout=len(heldout),
        classes=len(train.class_names),
        skipped=dict(skipped),
        links=sum(source.listing.links for source in roots),
        modes=dict(modes),
        looked_at=modes.total(),
        overlap=overlap,
        compared=compared,
        differs=dict(differs),
        class_names=tuple(train.class_names),
    )


def readings_differ(source: FolderSource) -> bool:
    """Whether the first reading of a folder's pictures would be another one, as far as `survey` looks."""
    return bool(source.listing.differs or _headers([source], None)[1])


def _read(document: Mapping[str, Any]) -> Survey | None:
    """A survey from its document; None where that is damaged."""
    kinds = {name: type(value) for name, value in Survey("", 0, 0, 0).document().items()}
    values = {name: document[name] for name in kinds if isinstance(document.get(name), kinds[name])}
    counted = [count for value in values.values() if isinstance(value, dict) for count in value.values()]
    whole = len(values) == len(kinds) and all(isinstance(count, int) for count in counted)
    return Survey(**values) if whole else None


def _sampled(roots: Sequence[StoredPictures]) -> list[range]:
    """The numbers, in units of their count, of the pictures of each root that are looked at."""
    counts = [len(source.labels) for source in roots]
    return [range(min(number, max(SAMPLE * number // max(sum(counts), SAMPLE), 1))) for number in counts]


def _headers(
    roots: Sequence[StoredPictures], side: int | None, step: Callable[[], None] = lambda: None
) -> tuple[Counter[str], Counter[str]]:
    """Modes of a sample of the pictures, and what the first reading does otherwise."""
    modes: Counter[str] = Counter()
    details: Counter[str] = Counter()
    for source, numbers in zip(roots, _sampled(roots), strict=True):
        for number in numbers:
            i = number * len(source.labels) // len(numbers)
            header = source.header(i, side)
            modes[header.mode] += 1
            if isinstance(source, FolderSource):
                details[ROTATED] += header.rotated
                details[TRANSPARENT] += header.transparent and source.is_see_through(i)
            step()
    return modes, +details


def _same_pixels(train: ImageSet, heldout: ImageSet, step: Callable[[], None]) -> tuple[int, int]:
    """How many held-out images are also training images, by their prepared pixels, of how many compared."""

    def digests(images: ImageSet) -> Iterator[bytes]:
        for i in range(len(images)):
            yield hashlib.sha256(images.image(i, None).data).digest()
            step()

    known = set(digests(train))
    return sum(digest in known for digest in digests(heldout)), len(heldout)


def _compared(heldout: ImageSet) -> int:
    return min(len(heldout), HELDOUT_SAMPLE)


def _same_files(train: ImageSet, heldout: ImageSet, step: Callable[[], None]) -> tuple[int, int]:
    """The same of a sample of the held-out pictures, by their bytes."""
    num_compared = _compared(heldout)
    theirs, ours = cast(StoredPictures, heldout.pictures), cast(StoredPictures, train.pictures)
    sample = [heldout.indices[number * len(heldout) // num_compared] for number in range(num_compared)]
    sizes = [theirs.stored_bytes(i) for i in sample]
    same_size: dict[int, list[int]] = {size: [] for size in sizes}
    for i in train.indices:
        if (found := same_size.get(ours.stored_bytes(i))) is not None and len(found) < SAME_SIZE:
            found.append(i)
    digests = {size: {ours.content_digest(i) for i in numbers} for size, numbers in same_size.items()}
    overlap = 0
    for i, size in zip(sample, sizes, strict=True):
        overlap += theirs.content_digest(i) in digests[size]
        step()
    return overlap, num_compared
