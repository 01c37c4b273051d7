"""`data.name=torchvision`: a data set of torchvision by its name, below `data.root` as torchvision itself keeps it.

Nothing is downloaded unless `data.torchvision.download` asks for it. Data sets that have one class a picture and say
which without opening it; their training and test parts are told apart by `train=` or `split=`, whichever they take.
"""

import hashlib
import inspect
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from mvar.config import Config, DataConfig
from mvar.data.arrays import LENGTH, pixel_fingerprint
from mvar.data.encoded import DECODED, stamp_of
from mvar.data.folders import Listing
from mvar.data.pictures import Header, plain
from mvar.data.sources.contract import OpenedSource, Split, check_num_classes
from mvar.data.sources.rooted import RootedSource, check_each_class, named_classes
from mvar.errors import UserError, one_of
from mvar.files import digest

FIELD = "data.torchvision.dataset"
LABELS = ("targets", "labels", "_labels", "y")  # where data sets keep them
NO_DATA_SETS = {"FakeData", "ImageFolder", "DatasetFolder", "VisionDataset", "EMNIST", "QMNIST", "Kinetics"}


class Torchvision(RootedSource):
    """A data set of torchvision."""

    class Settings(Config):
        """Which one, and which of its parts."""

        dataset: str = Field(default="MNIST", description="Name of the class in torchvision.datasets, e.g. CIFAR10.")
        train_split: str = Field(default="train", description="Training images of data sets that take `split`.")
        heldout_split: str = Field(
            default="test", description="Held-out images of data sets that take `split`; the same again: a share."
        )
        download: bool = Field(default=False, description="Let torchvision download what is missing below data.root.")

    name = "torchvision"
    takes_heldout = False
    layout = "the folder that torchvision keeps its data sets in"

    def pictures(self, root: Path, field: str, config: DataConfig) -> "TorchvisionPictures":
        """Those of training."""
        return self._part(root, "train", config)

    def open(self, config: DataConfig, split: Split | None = None) -> OpenedSource:
        """Both parts, or the one that a split needs; data sets of one part are split."""
        kind, settings = data_set(config.settings_of(self.name).dataset), config.settings_of(self.name)
        root = Path(config.path(config.root)) if config.root and settings.download else None
        root = root or self._root(config.root, "data.root", config)
        parameters = inspect.signature(kind).parameters
        apart = "train" in parameters or ("split" in parameters and settings.heldout_split != settings.train_split)
        train = heldout = None
        if not (apart and split == "heldout"):
            train = self._part(root, "train", config)
            check_num_classes(train.class_names, config, f"torchvision's {settings.dataset}")
            check_each_class(train, "data.root")
        if apart and split != "train":
            heldout = self._part(root, "heldout", config)
        return OpenedSource(train, heldout, apart)

    def _part(self, root: Path, split: Split, config: DataConfig) -> "TorchvisionPictures":
        settings = config.settings_of(self.name)
        kind = data_set(settings.dataset)
        opened = _opened(kind, root, split, settings.train_split, settings.heldout_split, settings.download)
        return TorchvisionPictures(opened, settings.dataset, root, split, config.num_classes)


class TorchvisionPictures:
    """Pictures of an open data set of torchvision, by their numbers."""

    def __init__(self, opened: Any, dataset: str, root: Path, split: Split, num_classes: int) -> None:
        self.opened, self.dataset, self.root, self.split = opened, dataset, root, split
        self.field, self.listing = "data.root", Listing()
        self.labels = _labels_of(opened, dataset)
        names = getattr(opened, "classes", None)
        names = [str(name) for name in names] if isinstance(names, list | tuple) else None
        self.class_names = named_classes(self.labels, names, num_classes, "data.root")

    def picture(self, i: int, mode: str, side: int | None) -> Image.Image:
        """Image i, as torchvision gives it."""
        return self._stored(i).convert(mode)

    def name(self, i: int) -> str:
        """Its number."""
        return str(i)

    def fingerprint(self, indices: Any) -> str:
        """Of few pictures that of their pixels; of many, of their labels and of torchvision's files."""
        if len(indices) <= DECODED:
            return pixel_fingerprint(self, indices)
        files = [[path.name, path.stat().st_size] for path in _files(self.root)]
        labels = self.labels[list(indices)].tolist()
        return digest([self.dataset, self.split, files, list(map(int, indices)), labels], length=LENGTH)

    def header(self, i: int, side: int | None) -> Header:
        """Its mode; it is decoded for that."""
        stored = self._stored(i)
        return Header(stored.mode, transparent=False, rotated=False, size=stored.size)

    def stored_bytes(self, i: int) -> int:
        """Not known without decoding it."""
        return 0

    def content_digest(self, i: int) -> str:
        """SHA-256 of its pixels."""
        return hashlib.sha256(self._stored(i).tobytes()).hexdigest()

    def stamp(self) -> str:
        """Of all files below the root."""
        return stamp_of(_files(self.root), self.dataset, self.split)

    def _stored(self, i: int) -> Image.Image:
        try:
            picture = self.opened[i][0]
            if not isinstance(picture, Image.Image):
                raise TypeError(f"a {type(picture).__name__}")
            picture.load()
        except Exception as error:  # whatever its decoder meets
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"data.root: image {i} of torchvision's {self.dataset} below {plain(self.root)} is not a readable "
                f"image ({reason}); mend or remove it"
            ) from None
        return picture


def data_set(name: str) -> Any:
    """The class of a data set.

    Raises:
        UserError: torchvision has none of that name that can be used; lists those that can.
    """
    from torchvision import datasets

    allowed = [
        name
        for name, kind in vars(datasets).items()
        if inspect.isclass(kind)
        and issubclass(kind, datasets.VisionDataset)
        and name not in NO_DATA_SETS
        and "root" in (parameters := inspect.signature(kind).parameters)
        and not {"annFile", "frames_per_clip", "ann_file"} & set(parameters)
    ]
    if name not in allowed:
        raise one_of(FIELD, name, sorted(allowed))
    return getattr(datasets, name)


@lru_cache(maxsize=2)  # both splits, which every stage of a process opens
def _opened(kind: Any, root: Path, split: Split, train: str, heldout: str, download: bool) -> Any:
    parameters = inspect.signature(kind).parameters
    chosen: dict[str, Any] = {"download": download} if "download" in parameters else {}
    if "train" in parameters:
        chosen["train"] = split == "train"
    elif "split" in parameters:
        chosen["split"] = train if split == "train" else heldout
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(str(root), **chosen)
    except Exception as error:  # missing, damaged, another package that it needs, a split that it has not
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        raise UserError(
            f"data.root: torchvision cannot open {kind.__name__} below {plain(root)} ({reason}); allowed: its files as "
            "torchvision keeps them, or data.torchvision.download=true"
        ) from None


def _labels_of(opened: Any, dataset: str) -> np.ndarray:
    samples = getattr(opened, "samples", None) or getattr(opened, "_samples", None)
    candidates = [getattr(opened, name, None) for name in LABELS]
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple):
        candidates.append([sample[1] for sample in samples])
    for values in candidates:
        array = np.asarray(values if values is not None else [])
        if array.ndim == 1 and len(array) == len(opened) and array.dtype.kind in "iu":
            return array.astype(np.int64)
    raise UserError(f"{FIELD}: {dataset} does not give one class a picture; allowed: CIFAR10, MNIST, ImageNet, ...")


def _files(root: Path) -> list[Path]:
    return sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names)
