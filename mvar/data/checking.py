"""Every picture of a data set looked at, one by one: sizes, modes, broken ones, duplicates. What was looked at is kept.

By default only headers are read, and pictures are duplicates that have the same bytes; or all are decoded, and those
are that have the same pixels.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from mvar.config import DataConfig
from mvar.data.arrays import fingerprint_of, picture_digest
from mvar.data.sources.contract import (
    OpenedSource,
    OtherNumberOfClasses,
    Pictures,
    Split,
    StoredPictures,
    find,
    open_source,
)
from mvar.errors import UserError
from mvar.files import digest
from mvar.progress import Progress
from mvar.registries import SOURCES
from mvar.rows import Rows

# A row a picture, as it is kept. Reasons are not: what is broken is looked at again.
ROW = np.dtype([("width", "<i4"), ("height", "<i4"), ("mode", "S12"), ("digest", "V32"), ("broken", "u1")])


@dataclass
class Part:
    """What was found in one split."""

    images: int
    classes: dict[str, int]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # width, height
    modes: Counter[str] = field(default_factory=Counter)  # Pillow's names
    broken: list[str] = field(default_factory=list)  # what is wrong, a line each
    duplicates: list[list[str]] = field(default_factory=list)  # names of pictures that are one
    fingerprint: str = ""  # of the pixels, where all were decoded


@dataclass
class Checked:
    """What was found; `shared` held-out pictures are also training pictures."""

    parts: dict[Split, Part]
    shared: int


def check_pictures(opened: OpenedSource, decode: bool, record: Path, progress: Progress | None = None) -> Checked:
    """Look at all pictures of an open data set, or at those that an earlier call has not come to.

    Args:
        opened: with both of its parts.
        decode: decode every picture; else headers alone.
        record: where is kept what was looked at; `.json` beside it says how far that is.
        progress: called with pictures done and in all.
    """
    parts: dict[Split, Pictures] = {"train": cast(Pictures, opened.train)}
    if opened.apart and opened.heldout is not None:
        parts["heldout"] = opened.heldout
    numbered = [(pictures, i) for pictures in parts.values() for i in range(len(pictures.labels))]
    plan = {"decode": decode, "images": len(numbered), "stamp": [stamp_of_part(part) for part in parts.values()]}
    record_file = record.with_name(record.name + ".json")
    with Rows(record, record_file, plan, ROW.itemsize) as rows:
        if progress:
            progress(rows.done, len(numbered))
        for pictures, i in numbered[rows.done :]:
            rows.append(_looked_at(pictures, i, decode).tobytes(), is_last=rows.done + 1 == len(numbered))
            if progress:
                progress(rows.done, len(numbered))
    found = np.fromfile(record, ROW, count=len(numbered))
    summaries: dict[Split, Part] = {}
    start = 0
    for split, pictures in parts.items():
        summaries[split] = _summary(pictures, found[start : start + len(pictures.labels)], decode)
        start += len(pictures.labels)
    return Checked(summaries, _shared(found, len(parts["train"].labels)))


def stamp_of_part(pictures: Pictures) -> str:
    """What changes when its files do; of what is in memory, its fingerprint."""
    stamp = getattr(pictures, "stamp", None)
    return stamp() if stamp else pictures.fingerprint(range(len(pictures.labels)))


def _looked_at(pictures: Pictures, i: int, decode: bool) -> np.ndarray:
    row = np.zeros((), ROW)
    try:
        if hasattr(pictures, "header"):
            stored = cast(StoredPictures, pictures)
            header = stored.header(i, None)
            (row["width"], row["height"]), row["mode"] = header.size, header.mode
        if decode or not hasattr(pictures, "header"):
            picture = pictures.picture(i, "RGB", None)
            if not row["mode"]:
                (row["width"], row["height"]), row["mode"] = picture.size, b"in memory"
            row["digest"] = np.void(picture_digest(picture))
        else:
            row["digest"] = np.void(bytes.fromhex(cast(StoredPictures, pictures).content_digest(i)))
    except UserError:
        row["broken"] = 1
    return row


def _reason(pictures: Pictures, i: int, decode: bool) -> str:
    """Why a picture is broken; it is looked at again."""
    try:
        if hasattr(pictures, "header"):
            cast(StoredPictures, pictures).header(i, None)
        if decode:
            pictures.picture(i, "RGB", None)
    except UserError as error:
        return str(error)
    return f"{pictures.name(i)} was broken when it was looked at, and no longer is; remove the record and check again"


def _summary(pictures: Pictures, found: np.ndarray, decode: bool) -> Part:
    counts = np.bincount(pictures.labels, minlength=len(pictures.class_names)).tolist()
    part = Part(len(found), dict(zip(pictures.class_names, counts, strict=True)))
    same: defaultdict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(found):
        if row["broken"]:
            part.broken.append(_reason(pictures, i, decode))
            continue
        part.sizes[int(row["width"]), int(row["height"])] += 1
        part.modes[row["mode"].decode("ascii", "replace")] += 1
        same[bytes(row["digest"])].append(i)
    part.duplicates = [[pictures.name(i) for i in group] for group in same.values() if len(group) > 1]
    if decode and not part.broken:
        part.fingerprint = fingerprint_of((bytes(row["digest"]) for row in found), pictures.labels)
    return part


def _shared(found: np.ndarray, train: int) -> int:
    sound = found["broken"] == 0
    known = {bytes(value) for value in found["digest"][:train][sound[:train]]}
    return sum(bytes(value) in known for value in found["digest"][train:][sound[train:]])


def check_id(values: Any, decode: bool) -> str:
    """A name for the record of one data set, looked at in one way."""
    return digest([values, decode])


def open_whole(config: DataConfig) -> tuple[DataConfig, OpenedSource]:
    """A data set, open, whatever its number of classes; and its config with that number."""
    if (count := count_classes(config)) != config.num_classes:
        config = config.model_copy(update={"num_classes": count})
        find(config.name).check(config, stored=True)
    return config, open_source(config)


def count_classes(config: DataConfig) -> int:
    """How many classes a data set has, whatever its config says.

    Raises:
        UserError: as `DataSource.check`, of anything else.
    """
    try:
        find(config.name).check(config, stored=True)
        if config.name in SOURCES.own:  # how many classes it has is known once it is open
            open_source(config)
        return config.num_classes
    except OtherNumberOfClasses as error:
        return error.count
    except UserError:  # the user's own may say it in words of its own
        count = len(_names(config)) if config.name in SOURCES.own else 0
        if count in (0, config.num_classes):
            raise
        return count


def _names(config: DataConfig) -> Sequence[str]:
    """The classes of a data set, whatever the config says; of one that does not open, none."""
    try:
        found = find(config.name).open(config)
        return (found.train or found.heldout).class_names  # pyright: ignore[reportOptionalMemberAccess]
    except (UserError, AttributeError):
        return []
