"""`data.name=tar`: tar shards as webdataset writes them, `KEY.jpg` beside `KEY.cls` or `KEY.json`.

Shards are read where they lie: an index of their members is made when they are opened, in seconds for a hundred
thousand pictures, and a picture's bytes are read when it is needed. Compressed shards have no such index.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import Field

from mvar.config import Config, DataConfig
from mvar.data.encoded import EncodedPictures, stamp_of
from mvar.data.folders import EXTENSIONS, MORE_EXTENSIONS, OTHER, Listing
from mvar.data.pictures import Content, plain
from mvar.data.sources.rooted import RootedSource, class_list, named_classes
from mvar.errors import UserError

CLASSES = "classes.txt"
MAX_LABEL_BYTES = 1 << 20
Place = tuple[str, int, int]  # shard, and where in it: first byte, number of bytes


class Tar(RootedSource):
    """A folder of shards, or one shard; the classes' names may be in `classes.txt` beside them."""

    class Settings(Config):
        """Where a picture's label is."""

        label: str = Field(
            default="cls", pattern="^[a-z0-9_]+$", description="Extension of the member that holds a picture's label."
        )
        key: str = Field(default="label", description="Of a label that is JSON: the field that holds the number.")

    name = "tar"
    layout = "a .tar file, or a folder of them, with KEY.jpg (or .png, ...) and KEY.cls for each picture"

    def pictures(self, root: Path, field: str, config: DataConfig) -> "TarPictures":
        """All pictures of all shards, in order of shard and member."""
        settings = config.settings_of(self.name)
        shards = sorted(path for path in root.iterdir() if path.suffix == ".tar") if root.is_dir() else [root]
        if not shards:
            raise UserError(f"{field}: {plain(root)} has no .tar files; allowed: {self.layout}")
        index = _index(field, settings.label, settings.key, tuple(map(str, shards)), stamp_of(shards))
        labels = np.array(index.labels, dtype=np.int64)
        folder = root if root.is_dir() else root.parent
        names = named_classes(labels, class_list(folder / CLASSES, field), config.num_classes, field)
        return TarPictures(field, labels, names, index, shards)


@dataclass
class Index:
    """Of all shards: where each picture is, what it is called and its label; members that are neither are skipped."""

    places: list[Place] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    listing: Listing = field(default_factory=Listing)


class TarPictures(EncodedPictures):
    """Members of tar shards."""

    def __init__(self, field: str, labels: np.ndarray, names: list[str], index: Index, shards: list[Path]) -> None:
        super().__init__(field, labels, names)
        self.index, self.shards, self.listing = index, shards, index.listing

    def content(self, i: int) -> Content:
        """Its bytes, read from the shard."""
        shard, start, size = self.index.places[i]
        try:
            with open(shard, "rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise UserError(f"{self.field}: {plain(shard)} cannot be read ({error.strerror})") from None
        return Content(f"{plain(Path(shard).parent)}/{self.name(i)}", data)

    def stored_bytes(self, i: int) -> int:
        """Size of the member."""
        return self.index.places[i][2]

    def name(self, i: int) -> str:
        """Its shard's and its member's."""
        return self.index.names[i]

    def stamp(self) -> str:
        """Of the shards."""
        return stamp_of(self.shards, *self.class_names)


@lru_cache(maxsize=4)  # both splits, and every stage of a process, are of one index
def _index(where: str, label: str, key: str, shards: tuple[str, ...], stamp: str) -> Index:
    index = Index()
    for shard in shards:
        pictures: dict[str, tuple[str, Place]] = {}
        labels: dict[str, tuple[str, Place]] = {}
        for name, place in _members(shard, where, index.listing):
            stem, _, extension = name.rpartition("/")[2].partition(".")
            base = f"{name.rpartition('/')[0]}/{stem}".lstrip("/")
            if "." + extension.lower().rpartition(".")[2] in EXTENSIONS + MORE_EXTENSIONS:
                if base in pictures:
                    raise UserError(f"{where}: {plain(shard)} has two pictures {base!r}; allowed: one a key")
                pictures[base] = (name, place)
            elif extension == label:
                labels[base] = (name, place)
            else:
                index.listing.skip(OTHER, "")
        with open(shard, "rb") as file:
            for base, (name, place) in pictures.items():
                if base not in labels:
                    allowed = "; allowed: data.tar.label, the extension of the member that holds it"
                    raise UserError(f"{where}: {plain(shard)} has no {base}.{label} beside {name}{allowed}")
                label_name, (_, start, size) = labels[base]
                file.seek(start)
                text = file.read(min(size, MAX_LABEL_BYTES))
                index.labels.append(_number(text, f"{where}: {plain(shard)}: {label_name}", label, key))
                index.places.append(place)
                index.names.append(f"{os.path.basename(shard)}/{name}")
    return index


def _members(shard: str, where: str, listing: Listing) -> Iterator[tuple[str, Place]]:
    """Names and places of a shard's files; damaged and compressed shards are one line."""
    size = os.path.getsize(shard)
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.sparse is not None:
                    listing.skip(OTHER, "")
                elif member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                else:
                    yield member.name, (shard, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        allowed = "allowed: an uncompressed tar file"
        raise UserError(f"{where}: {plain(shard)} is not a readable shard ({reason}); {allowed}") from None


def _number(text: bytes, shown: str, label: str, key: str) -> int:
    try:
        value = json.loads(text) if text.lstrip()[:1] == b"{" else text.decode("ascii").strip()
        value = value[key] if isinstance(value, dict) else value
        if isinstance(value, bool | float):
            raise ValueError(value)
        number = int(value)
        if abs(number) < 1 << 31:
            return number
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    wanted = f"a whole number, as text or as {key!r} of a JSON object (data.tar.key)"
    raise UserError(f"{shown} holds no label; allowed: {wanted}")
