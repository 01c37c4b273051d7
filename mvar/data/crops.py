"""From stored pictures to pixels: resized, cropped, as floats.

Preparation is VAR's: the shorter side is resized to `resize_factor * image_size`, then a crop of `image_size`; random
for training, central otherwise. Before that a picture may get a border (`pad_px`). Shapes: `ch` channels, `(H, W)`
pixels, both `image_size`.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mvar.config import DataConfig
from mvar.data.pictures import Reading, resized
from mvar.data.sources.contract import Pictures


def to_float(images: Tensor | np.ndarray) -> Tensor:
    """Pixels uint8 in any shape to float32 in [-1, 1], with the rounding of the official transforms."""
    unit = torch.tensor(images, dtype=torch.float32) if isinstance(images, np.ndarray) else images.to(torch.float32)
    unit = unit / 255
    return unit + unit - 1


def to_uint8(images: Tensor | np.ndarray) -> Tensor:
    """Floats in any shape to uint8, rounded; the inverse of `to_float`. Values beyond [-1, 1] are clamped."""
    return ((torch.as_tensor(images).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class ImageSet:
    """Images of one split. `labels` are `(len,)` int64, `class_names[label]` is a class's name.

    Args:
        pictures: of a data source.
        indices: the numbers of those of the split.
        config: how they are prepared.
        resize: whether they are resized.
        reading: how they are read.
    """

    def __init__(
        self, pictures: Pictures, indices: Sequence[int], config: DataConfig, resize: bool, reading: Reading
    ) -> None:
        self.pictures = pictures
        self.indices = [int(i) for i in indices]
        self._config = config
        self.shorter_side = round(config.resize_factor * config.image_size) if resize else None
        self.labels: np.ndarray = pictures.labels[self.indices]
        self.class_names = pictures.class_names
        self.reading: Reading = reading

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the data (`Pictures.fingerprint`); preparation is not in it."""
        return self.pictures.fingerprint(self.indices)

    def crop(self, i: int, crop: int, seed: int) -> np.ndarray:
        """Random crop number `crop` of image i, of those that `seed` stands for; as `image`."""
        return self.image(i, np.random.default_rng([seed, i, crop]))

    def image(self, i: int, rng: np.random.Generator | None) -> np.ndarray:
        """Image i, prepared: uint8 `(ch, H, W)`.

        Args:
            i: number of the image in this set.
            rng: draws the crop, and the flip where the config has one; None for the central crop, not flipped.

        Raises:
            UserError: the file cannot be read; names it.
        """
        mode = "L" if self._config.channels == 1 else "RGB"
        picture = self.pictures.picture(self.indices[i], mode, self.shorter_side)
        if self._config.pad_px:
            picture = ImageOps.expand(picture, self._config.pad_px)
        if rng is not None and self._config.hflip and rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.shorter_side:
            picture = resize_shorter(picture, self.shorter_side)
        size = self._config.image_size
        slack = (picture.height - size, picture.width - size)
        if rng is None:
            top, left = (round(s / 2) for s in slack)  # half to even, as in the official transforms
        else:
            top, left = (int(rng.integers(s + 1)) for s in slack)
        pixels = np.asarray(picture)[top : top + size, left : left + size].reshape(size, size, -1)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize_shorter(picture: Image.Image, side: int) -> Image.Image:
    """Resize so that the shorter side is `side` pixels, the longer one rounded down, by PIL's Lanczos filter."""
    if min(picture.size) == side:
        return picture
    return picture.resize(resized(*picture.size, side), Image.Resampling.LANCZOS)
