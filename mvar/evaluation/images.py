"""Image sets as the evaluation reads them: uint8 `(ch, H, W)` by index, from memory or decoded when asked for."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mvar.errors import UserError
from mvar.progress import Progress

HASH_BATCH = 256


def in_turn(progress: Progress | None, sizes: Sequence[int]) -> list[Progress]:
    """A callback for each of several passes over images, which together count to the sum of their sizes."""
    total = sum(sizes)

    def counting(before: int, size: int) -> Progress:
        def report(done: int, of: int) -> None:
            if progress:
                progress(before + size * done // of, total)

        return report

    return [counting(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


class Images(Dataset):
    """A set of N images as uint8 tensors `(ch, H, W)`; a Dataset, so that torch-fidelity reads it too.

    Args:
        source: a uint8 array or tensor `(N, ch, H, W)`, or an image set with `__len__` and `image(i, rng)`, which is
            read image by image (centre crops) and never held in memory.
        what: the name of the set in messages.

    Raises:
        UserError: not uint8 (NaN among floats is named), not four dimensions, or empty.
    """

    def __init__(self, source: Any, what: str) -> None:
        self.what = what
        self.source = source.source if isinstance(source, Images) else source
        if isinstance(self.source, Tensor):
            self.source = self.source.detach().cpu().numpy()
        if isinstance(self.source, np.ndarray):
            _check_array(self.source, what)
        if len(self) == 0:
            raise UserError(f"{what}: 0 images; allowed: one or more")
        self.image_shape = tuple(self[0].shape)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Tensor:
        image = self.source[i] if isinstance(self.source, np.ndarray) else self.source.image(i, None)
        if isinstance(image, Tensor):
            return image
        return torch.from_numpy(np.array(image))  # a copy: the source may be a read-only memory map

    def batches(self, size: int, progress: Progress | None = None) -> Iterator[Tensor]:
        """The images in order, as uint8 `(<= size, ch, H, W)`; `progress` is called once a batch is used."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield torch.stack([self[i] for i in range(start, stop)])
            if progress:
                progress(stop, len(self))

    def subset(self, indices: np.ndarray) -> "Images":
        """The images with the given numbers, in that order."""
        return Images(_Subset(self, indices), self.what)

    def content_order(self, progress: Progress | None = None) -> np.ndarray:
        """The numbers of the images in the order of the SHA-256 of their pixels, whatever order they came in.

        The inception score is a mean over consecutive splits and KID one over random subsets: with images sorted by
        class, or merely in another order, the same set would get another score.
        """
        batches = self.batches(HASH_BATCH, progress)
        digests = [hashlib.sha256(image.numpy().tobytes()).digest() for batch in batches for image in batch]
        return np.array(sorted(range(len(self)), key=digests.__getitem__))


class Spooled:
    """Rows that come batch by batch and are held in a temporary file, in `$TMPDIR`, which is gone with its map."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 the map holds it open

    def add(self, rows: Tensor) -> None:
        """Append uint8 rows, on any device."""
        self._file.write(rows.contiguous().cpu().numpy().data)

    def mapped(self, *shape: int) -> np.ndarray:
        """All rows, uint8 of that shape, read where they are used; what is written to the map is not kept."""
        self._file.flush()
        if not shape[0]:
            return np.empty(shape, np.uint8)  # no file without a byte can be mapped
        return np.memmap(self._file, np.uint8, "c", shape=shape)


class _Subset:
    """Some of the images of a set, with the interface of an image set."""

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, i: int, rng: None) -> Tensor:
        return self.images[int(self.indices[i])]


def _check_array(array: np.ndarray, what: str) -> None:
    if array.dtype != np.uint8:
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise UserError(f"{what}: images with NaN pixels; allowed: uint8 pixels, 0 to 255")
        raise UserError(f"{what}: pixels of type {array.dtype}; allowed: uint8, 0 to 255")
    if array.ndim != 4:
        raise UserError(f"{what}: shape {array.shape}; allowed: (images, channels, height, width)")


class Sized(Protocol):
    """A set whose images have a size: `(channels, height, width)`."""

    what: str
    image_shape: tuple[int, ...]


def check_same_size(first: Sized, second: Sized) -> None:
    """Raise a `UserError` where two sets differ in channels or size: no metric between them means anything."""
    if first.image_shape != second.image_shape:
        raise UserError(
            f"{first.what}: images of (channels, height, width) {first.image_shape}; allowed: "
            f"{second.image_shape} as in {second.what}"
        )


def spread_indices(count: int, limit: int) -> np.ndarray:
    """At most `limit` of the numbers below `count`, evenly spread: every class of a set sorted by class is in."""
    if count <= limit:
        return np.arange(count)
    return np.arange(limit) * count // limit
