"""`data.name=npy`: a folder with `images.npy` and `labels.npy`, memory-mapped, and perhaps `classes.txt`."""

import hashlib
from pathlib import Path

import numpy as np

from mvar.config import DataConfig
from mvar.data.arrays import ArrayPictures
from mvar.data.encoded import stamp_of
from mvar.data.folders import Listing
from mvar.data.pictures import MAX_PIXELS, Header, plain
from mvar.data.sources.rooted import RootedSource, class_list, named_classes
from mvar.errors import UserError

IMAGES, LABELS, CLASSES = "images.npy", "labels.npy", "classes.txt"


class Npy(RootedSource):
    """Pictures of one size in an array, with an array of their labels."""

    name = "npy"
    layout = f"a folder with {IMAGES} (uint8, N x H x W or N x H x W x 3) and {LABELS} (N integers)"

    def pictures(self, root: Path, field: str, config: DataConfig) -> "MappedPictures":
        """The arrays of a folder, which are not read yet."""
        pixels, labels = (_load(root / name, field, self.layout) for name in (IMAGES, LABELS))
        if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)):
            shape = " x ".join(map(str, pixels.shape))
            raise UserError(f"{field}: {plain(root / IMAGES)} holds {pixels.dtype} {shape}; allowed: {self.layout}")
        if not 0 < pixels.shape[1] * pixels.shape[2] <= MAX_PIXELS:
            raise UserError(
                f"{field}: {plain(root / IMAGES)} has pictures of {pixels.shape[2]:,} x {pixels.shape[1]:,} pixels; "
                f"allowed: at most {MAX_PIXELS:,}"
            )
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise UserError(f"{field}: {plain(root / LABELS)} holds {labels.dtype} of {labels.ndim} dimensions; "
                            "allowed: whole numbers of one")  # fmt: skip
        if len(labels) != len(pixels):
            raise UserError(
                f"{field}: {plain(root)} has {len(pixels):,} images and {len(labels):,} labels; allowed: equally many"
            )
        names = named_classes(labels, class_list(root / CLASSES, field), config.num_classes, field)
        return MappedPictures(root, field, pixels, labels, names)


class MappedPictures(ArrayPictures):
    """Pictures of a memory map, which a survey looks at like any other stored ones."""

    def __init__(self, root: Path, field: str, pixels: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
        super().__init__(pixels, labels, names)
        self.root, self.field, self.listing = root, field, Listing()

    def header(self, i: int, side: int | None) -> Header:
        """Grey or in colour."""
        mode = "L" if self.pixels.ndim == 3 else "RGB"
        return Header(mode, transparent=False, rotated=False, size=(self.pixels.shape[2], self.pixels.shape[1]))

    def stored_bytes(self, i: int) -> int:
        """The same for all."""
        return int(np.prod(self.pixels.shape[1:]))

    def content_digest(self, i: int) -> str:
        """SHA-256 of its pixels."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels[i]).data).hexdigest()

    def stamp(self) -> str:
        """Of both files."""
        return stamp_of([self.root / IMAGES, self.root / LABELS], *self.class_names)


def _load(path: Path, field: str, layout: str) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{field}: {plain(path)} is missing; allowed: {layout}") from None
    except Exception as error:  # a header is parsed as a Python literal, and damage there raises nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{field}: {plain(path)} cannot be read ({reason}); allowed: {layout}") from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{field}: {plain(path)} is an archive of arrays; allowed: {layout}")
    return found
