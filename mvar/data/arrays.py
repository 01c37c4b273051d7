"""Pictures that are arrays already, and the digest of pixels that is the same in every layout.

Shapes: `N` pictures of `(H, W)` pixels, grey `(N, H, W)` or in colour `(N, H, W, 3)`, uint8.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from mvar.data.sources.contract import Pictures

BLOCK = 1024  # pictures that are held as RGB at once
LENGTH = 16  # hex digits of a fingerprint


class ArrayPictures:
    """Pictures of one size, in memory or memory-mapped; their names are their numbers.

    Args:
        pixels: uint8 `(N, H, W)` or `(N, H, W, 3)`.
        labels: `(N,)` integers from 0.
        class_names: a name a label.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
        self.pixels = pixels
        self.labels = labels.astype(np.int64)
        self.class_names = list(class_names)

    def picture(self, i: int, mode: str, side: int | None) -> Image.Image:
        """Image i."""
        return Image.fromarray(np.asarray(self.pixels[i])).convert(mode)

    def name(self, i: int) -> str:
        """Its number."""
        return str(i)

    def fingerprint(self, indices: Sequence[int]) -> str:
        """As `pixel_fingerprint`."""
        chosen = np.asarray(indices, dtype=np.int64)
        return fingerprint_of(self._digests(chosen), self.labels[chosen])

    def _digests(self, chosen: np.ndarray) -> Iterator[bytes]:
        height, width = self.pixels.shape[1:3]
        for start in range(0, len(chosen), BLOCK):
            block = self.pixels[chosen[start : start + BLOCK]]
            for picture in np.repeat(block[..., None], 3, axis=-1) if block.ndim == 3 else block:
                yield _digest(width, height, picture.tobytes())


def pixel_fingerprint(pictures: "Pictures", indices: Sequence[int]) -> str:
    """Digest of the pixels of pictures, as RGB in their stored size, and of their labels: whatever the layout.

    All of them are decoded. Grey pictures and the same in colour are equal; file names and class names do not count.

    Raises:
        UserError: a picture that cannot be read.
    """
    digests = (picture_digest(pictures.picture(i, "RGB", None)) for i in indices)
    return fingerprint_of(digests, pictures.labels[list(indices)])


def picture_digest(picture: Image.Image) -> bytes:
    """SHA-256 of the size and the pixels of an RGB picture, 32 bytes."""
    return _digest(*picture.size, picture.tobytes())


def fingerprint_of(digests: Iterable[bytes], labels: np.ndarray) -> str:
    """The fingerprint of pictures of which the digests are known."""
    found = hashlib.sha256()
    for one in digests:
        found.update(one)
    found.update(labels.astype("<i8").tobytes())
    return found.hexdigest()[:LENGTH]


def _digest(width: int, height: int, pixels: bytes) -> bytes:
    return hashlib.sha256(f"{width}x{height}:".encode() + pixels).digest()
