"""Image sets: scikit-learn's digits and folders of images, split into training and held-out images and cropped.

Preparation is VAR's: the shorter side is resized to `resize_factor * image_size`, then a crop of `image_size`; random
for training, central otherwise. Shapes: `ch` channels, `(H, W)` pixels, both `image_size`.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar.config import DataConfig
from mvar.data.folders import LAYOUT, FolderSource, class_folders, in_order, one_form, spelled
from mvar.data.pictures import resized, shown
from mvar.errors import UserError, one_of, warn
from mvar.files import digest

Split = Literal["train", "heldout"]
Sources = tuple[FolderSource | None, FolderSource | None]  # of training and of held-out images, where they lie apart
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

    def picture(self, i: int, mode: str, side: int | None) -> Image.Image:
        """Image i as it is stored, in mode `L` or `RGB`; `side` is what its shorter side will be resized to."""

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


class ImageSet:
    """Images of one split. `labels` are `(len,)` int64, `class_names[label]` is a class's name."""

    def __init__(self, source: Source, indices: Sequence[int], config: DataConfig, resize: bool = True) -> None:
        self._source = source
        self._indices = [int(i) for i in indices]
        self._config = config
        self.shorter_side = round(config.resize_factor * config.image_size) if resize else None
        self.labels: np.ndarray = source.labels[self._indices]
        self.class_names = source.class_names
        self.reading = config.reading

    def __len__(self) -> int:
        return len(self._indices)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the data: pixels for digits, file names and sizes for folders; preparation is not in it."""
        return self._source.fingerprint(self._indices)

    def path(self, i: int) -> Path:
        """The file of image i of a folder."""
        return self._source.root / self._source.name(self._indices[i])

    def image(self, i: int, rng: np.random.Generator | None) -> np.ndarray:
        """Image i, prepared: uint8 `(ch, H, W)`.

        Args:
            i: number of the image in this set.
            rng: draws the crop, and the flip where the config has one; None for the central crop, not flipped.

        Raises:
            UserError: the file cannot be read; names it.
        """
        mode = "L" if self._config.channels == 1 else "RGB"
        picture = self._source.picture(self._indices[i], mode, self.shorter_side)
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
    return image_set(config, folder_sources(config, split), split)


def folder_sources(config: DataConfig, split: Split | None = None) -> Sources:
    """The training folder and the held-out one, if the config has it; of a split only what that needs.

    Raises:
        UserError: as `load_images`.
    """
    names, apart = _folder_classes(config), bool(config.heldout_root)
    train = heldout = None
    if not (apart and split == "heldout"):
        train = FolderSource(config.path(config.root or ""), "data.root", config.reading, class_names=names.train)
    if apart and split != "train":
        root = config.path(config.heldout_root or "")
        heldout = FolderSource(root, "data.heldout_root", config.reading, class_names=names.heldout)
    return train, heldout


def image_set(config: DataConfig, sources: Sources, split: Split) -> ImageSet:
    """The images of a split of folders that are listed."""
    train, heldout = sources
    if config.heldout_root:
        folder = train if split == "train" else heldout
        return ImageSet(folder, range(len(folder.labels)), config)
    return ImageSet(train, _split(train, config, split), config)


class _Classes(NamedTuple):
    """The class subfolders of both roots, in the order of their labels: names of one class may be written otherwise."""

    train: list[str]
    heldout: list[str]  # empty without a held-out folder


def _folder_classes(config: DataConfig) -> _Classes:
    if config.name != "imagefolder":
        raise one_of("data.name", config.name, ("digits", "imagefolder"))
    if not config.root:
        raise UserError(f"data.root: not set; allowed: {LAYOUT}, which data.name=imagefolder needs")
    root = config.path(config.root)
    names = class_folders(Path(root), "data.root", config.reading, config.class_order)
    _check_num_classes(names, config, shown(root))
    if not config.heldout_root:
        return _Classes(names, [])
    heldout = class_folders(Path(config.path(config.heldout_root)), "data.heldout_root", config.reading)
    return _Classes(names, _matched(names, heldout, config))


def check_classes(config: DataConfig, stored: bool = False, order_is_asked: bool = False) -> None:
    """Compare the config with the folders and their class subfolders: what is found before a file is listed.

    Args:
        config: of digits, or of a folder.
        stored: of a run that there is: what was allowed when it was made is a warning, and the order of its classes,
            which nothing can change any more, is not spoken of.
        order_is_asked: whether `class_order` was asked for; else a warning says where the other order is another.

    Raises:
        UserError: as `load_images` does of missing folders and of classes; a held-out folder that is the training
            folder, or lies in it.
    """
    if config.name == "digits":
        _check_num_classes(DIGITS_CLASSES, config, "scikit-learn's digits")
        return
    names = _folder_classes(config).train
    if config.heldout_root and (together := _lie_together(config)):
        if not stored:
            raise UserError(f"{together}; allowed: folders apart, or none for a part of data.root")
        warn(f"{together}: images that were trained on measure the run")
    if config.class_order == "name" and not stored and not order_is_asked:
        warn_of_order(names, "data.class_order: name", "data.class_order=number, in whose order")


def warn_of_order(names: Sequence[str], given: str, allowed: str) -> None:
    """Say where class names in order of text are not in order of the numbers in them."""
    by_number = in_order(names, "number")
    wrong = next((i for i, name in enumerate(names) if name != by_number[i]), None)
    if wrong is not None:
        other = by_number[wrong]
        warn(
            f"{given} gives {spelled(names[wrong])} label {wrong} and {spelled(other)} label {names.index(other)}; "
            f"allowed: {allowed} {spelled(other)} is {wrong}"
        )


def _lie_together(config: DataConfig) -> str | None:
    """What is wrong where one root is the other, or lies in it, links followed."""
    train, heldout = (Path(os.path.realpath(config.path(root or ""))) for root in (config.root, config.heldout_root))
    given = f"data.heldout_root: {shown(config.path(config.heldout_root or ''))}"
    if train == heldout or (train.stat().st_dev, train.stat().st_ino) == (heldout.stat().st_dev, heldout.stat().st_ino):
        return f"{given} is data.root"
    if train in heldout.parents:
        return f"{given} lies in data.root ({shown(train)})"
    return f"{given} holds data.root ({shown(train)})" if heldout in train.parents else None


def _check_num_classes(names: Sequence[str], config: DataConfig, where: str) -> None:
    count = len(names)
    if count == 1:
        raise UserError(f"data.root: {where} has one class only ({spelled(names[0])}); allowed: two or more")
    if count != config.num_classes:
        raise UserError(
            f"data.num_classes: {config.num_classes} does not fit {where}, which has {count} classes; allowed: {count}"
        )


def _matched(trained: Sequence[str], heldout: Sequence[str], config: DataConfig) -> list[str]:
    """The held-out class subfolders in the order of the training ones; Unicode's two forms of a name are one."""
    if set(trained) == set(heldout):
        return list(trained)
    names = {one_form(name): name for name in heldout}
    forms = [one_form(name) for name in trained]
    differing = sorted(set(forms) ^ set(names))
    if differing or len(names) != len(heldout) or len(set(forms)) != len(forms):
        differing = differing or sorted(set(trained) ^ set(heldout))
        shown_names = ", ".join(map(spelled, differing[:5])) + (", ..." if len(differing) > 5 else "")
        raise UserError(
            f"data.heldout_root: {shown(config.path(config.heldout_root or ''))} and "
            f"{shown(config.path(config.root or ''))} differ in {len(differing)} classes ({shown_names}); allowed: the "
            "same class subfolders"
        )
    return [names[form] for form in forms]


def _split(source: Source, config: DataConfig, split: Split) -> list[int]:
    chosen: list[int] = []
    for label, name in enumerate(source.class_names):
        members = np.flatnonzero(source.labels == label).tolist()
        if len(members) < 2:
            raise UserError(
                f"data.root: class {spelled(name)} has 1 image; allowed: two or more (one is held out), or a "
                "data.heldout_root"
            )
        members.sort(key=lambda i: digest([config.split_seed, source.name(i)], length=64))
        count = min(max(round(config.heldout_fraction * len(members)), 1), len(members) - 1)
        chosen += members[:count] if split == "heldout" else members[count:]
    return sorted(chosen)
