"""`data.name=digits`: scikit-learn's digits, which are installed with it."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mvar.config import DataConfig
from mvar.data.sources.contract import DataSource, OpenedSource, Split, check_num_classes

SIDE = 8
CLASSES = tuple("0123456789")
WHERE = "scikit-learn's digits"


class Digits(DataSource):
    """All images are in memory, and have the size that the demo's presets ask for."""

    has_readings = True  # no picture is read otherwise, but its results say 1 from the first version on

    def check(self, config: DataConfig, stored: bool = False, order_is_asked: bool = False) -> None:
        """Their classes are ten."""
        check_num_classes(CLASSES, config, WHERE)

    def open(self, config: DataConfig, split: Split | None = None) -> OpenedSource:
        """All of them."""
        pictures = DigitsPictures()
        check_num_classes(pictures.class_names, config, WHERE)
        return OpenedSource(pictures)

    def missing(self, config: DataConfig) -> list[str]:
        """Nothing: they have no root."""
        return []

    def resizes(self, config: DataConfig) -> bool:
        """Not at their own size."""
        return config.image_size != SIDE


class DigitsPictures:
    """scikit-learn's `load_digits`: 1797 grey 8x8 images of ten classes, 0..16 stretched to 0..255."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data: Any = load_digits()
        self.pixels = np.round(data.images * 255 / 16).astype(np.uint8)
        self.labels = data.target.astype(np.int64)
        self.class_names = [str(name) for name in data.target_names]

    def picture(self, i: int, mode: str, side: int | None) -> Image.Image:
        """Image i, 8x8."""
        return Image.fromarray(self.pixels[i]).convert(mode)

    def name(self, i: int) -> str:
        """Its number."""
        return str(i)

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Digest of pixels and labels."""
        chosen = list(indices)
        return hashlib.sha256(self.pixels[chosen].tobytes() + self.labels[chosen].tobytes()).hexdigest()[:16]
