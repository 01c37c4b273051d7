"""Pictures that are stored in their own formats, one by one, wherever their bytes lie: the base of such sources."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mvar.data.arrays import LENGTH, pixel_fingerprint
from mvar.data.folders import Listing
from mvar.data.pictures import Header, Stored, decode, read_header
from mvar.files import digest, file_digest

DECODED = 4096  # pictures, of which a fingerprint is of pixels: half a minute for large ones


class EncodedPictures(ABC):
    """A `StoredPictures` for subclasses that say where the bytes of a picture are.

    Args:
        field: of the config, for messages.
        labels: `(N,)` integers from 0.
        class_names: a name a label.
    """

    def __init__(self, field: str, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.field = field
        self.labels = labels.astype(np.int64)
        self.class_names = list(class_names)
        self.listing = Listing()

    @abstractmethod
    def content(self, i: int) -> Stored:
        """Image i as it is stored: a file, or its bytes."""

    @abstractmethod
    def stored_bytes(self, i: int) -> int:
        """How many bytes that is."""

    @abstractmethod
    def name(self, i: int) -> str:
        """A name of image i that stays when others are added."""

    @abstractmethod
    def stamp(self) -> str:
        """A digest that stays the same while nothing was written."""

    def picture(self, i: int, mode: str, side: int | None) -> Image.Image:
        """Image i; one that cannot be decoded is a `UserError` that names it."""
        return decode(self.content(i), self.field, mode, side)

    def header(self, i: int, side: int | None) -> Header:
        """What its header says."""
        return read_header(self.content(i), self.field, side)

    def content_digest(self, i: int) -> str:
        """SHA-256 of its bytes."""
        content = self.content(i)
        return file_digest(content) if isinstance(content, Path) else hashlib.sha256(content.data).hexdigest()

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of few pictures that of their pixels, the same in every layout; of many, of names, sizes and labels."""
        if len(indices) <= DECODED:
            return pixel_fingerprint(self, indices)
        return digest([[self.name(i), self.stored_bytes(i), int(self.labels[i])] for i in indices], length=LENGTH)


def stamp_of(paths: Iterable[Path], *beside: object) -> str:
    """Digest of names, sizes and times of change of files, and of whatever else decides what is read from them."""
    stamps = [[str(path), (s := os.stat(path)).st_size, s.st_mtime_ns, s.st_ctime_ns] for path in paths]
    return digest([stamps, [str(part) for part in beside]], length=LENGTH)
