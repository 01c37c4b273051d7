"""Image sets: scikit-learn's digits and folders of images, split into training and held-out images and cropped.

Preparation is VAR's: the shorter side is resized to `resize_factor * image_size`, then a crop of `image_size`; random
for training, central otherwise. Shapes: `ch` channels, `(H, W)` pixels, both `image_size`.
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar.config import DataConfig
from mvar.errors import UserError
from mvar.files import digest

Split = Literal["train", "heldout"]
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
DIGITS_SIDE = 8
DIGITS_CLASSES = tuple("0123456789")


def to_float(images: Tensor | np.ndarray) -> Tensor:
    """Pixels uint8 in any shape to float32 in [-1, 1], with the rounding of the official transforms."""
    unit = torch.tensor(images, dtype=torch.float32) if isinstance(images, np.ndarray) else images.to(torch.float32)
    unit = unit / 255
    return unit + unit - 1


def to_uint8(images: Tensor | np.ndarray) -> Tensor:
    """Floats in any shape to uint8, rounded; the inverse of `to_float`. Values beyond [-1, 1] are clamped."""
    return ((torch.as_tensor(images).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Source(Protocol):
    """Where images come from, before split and preparation."""

    labels: np.ndarray
    class_names: list[str]

    def picture(self, i: int) -> Image.Image:
        """Image i as it is stored."""

    def name(self, i: int) -> str:
        """A name of image i that stays when others are added."""

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Digest of what is stored for these images."""


class DigitsSource:
    """scikit-learn's `load_digits`: 1797 grey 8x8 images of ten classes, 0..16 stretched to 0..255."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        self.pixels = np.round(data.images * 255 / 16).astype(np.uint8)
        self.labels = data.target.astype(np.int64)
        self.class_names = [str(name) for name in data.target_names]

    def picture(self, i: int) -> Image.Image:
        """Image i, 8x8, mode L."""
        return Image.fromarray(self.pixels[i])

    def name(self, i: int) -> str:
        """Its number."""
        return str(i)

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Digest of pixels and labels."""
        chosen = list(indices)
        return hashlib.sha256(self.pixels[chosen].tobytes() + self.labels[chosen].tobytes()).hexdigest()[:16]


class FolderSource:
    """Class subfolders (sorted by name) of image files (found at any depth, sorted); hidden names are left out.

    Raises:
        UserError: the folder is missing, has no class subfolder, or one of them has no image.
    """

    def __init__(self, root: Path | str, field: str) -> None:
        self.root = Path(root)
        self.field = field
        self.class_names = _class_names(self.root, field)
        self.files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            found = sorted(_image_files(self.root, name))
            if not found:
                raise UserError(f"{field}: {self.root / name} has no images; allowed: files {', '.join(EXTENSIONS)}")
            self.files += found
            labels += [label] * len(found)
        self.labels = np.array(labels, dtype=np.int64)

    def picture(self, i: int) -> Image.Image:
        """Image i, decoded; a file that cannot be is a `UserError` that names it."""
        path = self.root / self.files[i]
        try:
            with Image.open(path) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.field}: {path} is not a readable image ({reason}); mend or remove it") from None
        if picture.mode.startswith(("I", "F")):  # conversion would saturate nearly every pixel without a word
            raise UserError(
                f"{self.field}: {path} has more than 8 bits a channel (mode {picture.mode}); allowed: 8 bits"
            )
        return picture

    def name(self, i: int) -> str:
        """Its path below the root, with forward slashes."""
        return self.files[i]

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Digest of names and sizes; contents are not read, ImageNet's would take long."""
        return digest([[self.files[i], os.path.getsize(self.root / self.files[i])] for i in indices], length=16)


_LAYOUT = "a folder with one subfolder of images a class"


def _class_names(root: Path, field: str) -> list[str]:
    if not root.is_dir():
        raise UserError(f"{field}: {root} is not a folder; allowed: {_LAYOUT}")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{field}: {root} has no class subfolders; allowed: {_LAYOUT}")
    return names


def _image_files(root: Path, class_name: str) -> list[str]:
    found = []
    for folder, subfolders, names in os.walk(root / class_name, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(folder).relative_to(root).as_posix()
        found += [
            f"{relative}/{name}" for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return found


class ImageSet:
    """Images of one split. `labels` are `(len,)` int64, `class_names[label]` is a class's name."""

    def __init__(self, source: Source, indices: Sequence[int], config: DataConfig, resize: bool = True) -> None:
        self._source = source
        self._indices = [int(i) for i in indices]
        self._config = config
        self._shorter_side = round(config.resize_factor * config.image_size) if resize else None
        self.labels: np.ndarray = source.labels[self._indices]
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._indices)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the data: pixels for digits, file names and sizes for folders; preparation is not in it."""
        return self._source.fingerprint(self._indices)

    def image(self, i: int, rng: np.random.Generator | None) -> np.ndarray:
        """Image i, prepared: uint8 `(ch, H, W)`.

        Args:
            i: number of the image in this set.
            rng: draws the crop, and the flip where the config has one; None for the central crop, not flipped.

        Raises:
            UserError: the file cannot be read; names it.
        """
        picture = self._source.picture(self._indices[i])
        picture = picture.convert("L" if self._config.channels == 1 else "RGB")
        if rng is not None and self._config.hflip and rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._shorter_side:
            picture = resize_shorter(picture, self._shorter_side)
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
    width, height = picture.size
    shorter = min(width, height)
    if shorter == side:
        return picture
    size = (side * width // shorter, side * height // shorter)
    return picture.resize(size, Image.Resampling.LANCZOS)


def load_images(config: DataConfig, split: Split) -> ImageSet:
    """The images of a split.

    Without a held-out folder, `heldout_fraction` of each class (at least one image) is held out: those whose names
    have the lowest digests under `split_seed`, so that the split depends neither on the order of files nor, much, on
    which others there are.

    Raises:
        UserError: a folder is missing or empty, there is one class only, their number is not `num_classes`, a class
            is too small to be split, or the held-out folder has other classes.
    """
    if config.name == "digits":
        source: Source = DigitsSource()
        _check_num_classes(source.class_names, config, "scikit-learn's digits")
        native = config.image_size == DIGITS_SIDE
        return ImageSet(source, _split(source, config, split), config, resize=not native)
    if not config.root:
        raise UserError(f"data.root: not set; allowed: {_LAYOUT}, which data.name=imagefolder needs")
    folder = FolderSource(config.path(config.root), "data.root")
    _check_num_classes(folder.class_names, config, str(folder.root))
    if not config.heldout_root:
        return ImageSet(folder, _split(folder, config, split), config)
    if split == "heldout":
        trained, folder = folder, FolderSource(config.path(config.heldout_root), "data.heldout_root")
        _check_same_classes(trained.class_names, folder.class_names, config)
    return ImageSet(folder, range(len(folder.labels)), config)


def check_classes(config: DataConfig) -> None:
    """Compare the config with the names of the class subfolders: what `load_images` finds before it lists a file.

    Raises:
        UserError: as `load_images` does of missing folders and of classes.
    """
    if config.name == "digits":
        _check_num_classes(DIGITS_CLASSES, config, "scikit-learn's digits")
        return
    root = config.path(config.root or "")
    names = _class_names(Path(root), "data.root")
    _check_num_classes(names, config, root)
    if config.heldout_root:
        _check_same_classes(names, _class_names(Path(config.path(config.heldout_root)), "data.heldout_root"), config)


def _check_num_classes(names: Sequence[str], config: DataConfig, where: str) -> None:
    count = len(names)
    if count == 1:
        raise UserError(f"data.root: {where} has one class only ({names[0]!r}); allowed: two or more")
    if count != config.num_classes:
        raise UserError(
            f"data.num_classes: {config.num_classes} does not fit {where}, which has {count} classes; allowed: {count}"
        )


def _check_same_classes(trained: Sequence[str], heldout: Sequence[str], config: DataConfig) -> None:
    differing = sorted(set(trained) ^ set(heldout))
    if differing:
        shown = ", ".join(repr(name) for name in differing[:5]) + (", ..." if len(differing) > 5 else "")
        raise UserError(
            f"data.heldout_root: {config.path(config.heldout_root or '')} and {config.path(config.root or '')} differ "
            f"in {len(differing)} classes ({shown}); allowed: the same class subfolders"
        )


def _split(source: Source, config: DataConfig, split: Split) -> list[int]:
    chosen: list[int] = []
    for label, name in enumerate(source.class_names):
        members = np.flatnonzero(source.labels == label).tolist()
        if len(members) < 2:
            raise UserError(
                f"data.root: class {name!r} has 1 image; allowed: two or more (one is held out), or a data.heldout_root"
            )
        members.sort(key=lambda i: digest([config.split_seed, source.name(i)], length=64))
        count = min(max(round(config.heldout_fraction * len(members)), 1), len(members) - 1)
        chosen += members[:count] if split == "heldout" else members[count:]
    return sorted(chosen)
