"""What a data source is: the pictures behind a `data.name`, as they are stored, before they are split and cropped."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from mvar.config import DataConfig
from mvar.data.folders import Listing, spelled
from mvar.data.pictures import Header, Reading, plain
from mvar.errors import UserError, counted, quoted
from mvar.registries import SOURCES

Split = Literal["train", "heldout"]
PICTURES = ("labels", "class_names", "picture", "name", "fingerprint")  # what `Pictures` have


class Pictures(Protocol):
    """Pictures in a fixed order, with labels `(len,)` int64; `class_names[label]` is a class's name."""

    labels: np.ndarray
    class_names: list[str]

    def picture(self, i: int, mode: str, side: int | None) -> Image.Image:
        """Image i as it is stored, in mode `L` or `RGB`; `side` is what its shorter side will be resized to."""
        ...

    def name(self, i: int) -> str:
        """A name of image i that stays when others are added."""
        ...

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Digest of what is stored for these images: what was made of them once is used while it stays the same.

        Of pixels and labels (`mvar.data.arrays.pixel_fingerprint`) where they can be had in no time.
        """
        ...


class StoredPictures(Pictures, Protocol):
    """Pictures that are decoded when they are needed: what a survey of them looks at.

    `field` names in messages where they are, `listing` says what was left out.
    """

    field: str
    listing: Listing

    def header(self, i: int, side: int | None) -> Header:
        """What can be known of image i before it is decoded; sizes and modes that are refused are a `UserError`."""
        ...

    def stored_bytes(self, i: int) -> int:
        """How many bytes image i takes: equal pictures of one form have equally many. 0 where it would have to be read:
        this is asked of every image."""
        ...

    def content_digest(self, i: int) -> str:
        """SHA-256 of these bytes."""
        ...

    def stamp(self) -> str:
        """A digest that stays the same while nothing was written; contents are not read."""
        ...


class OpenedSource(NamedTuple):
    """The pictures of a data set: all of them in `train`, unless the held-out ones lie apart."""

    train: Pictures | None
    heldout: Pictures | None = None
    apart: bool = False


class DataSource(ABC):
    """A kind of data set. It is made without arguments; what it needs to know stands in the config."""

    in_memory: ClassVar[bool] = True
    """Whether an open source has all images at hand. Else it opens `StoredPictures`: they are surveyed before runs are
    launched, and what is decoded of them once is kept."""

    has_readings: ClassVar[bool] = False
    """Whether `DataConfig.reading` chooses between two readings, as of `FolderSource`; others have the second alone."""

    takes_heldout: ClassVar[bool] = False
    """Whether `data.heldout_root` may hold another set of images."""

    @abstractmethod
    def check(self, config: DataConfig, stored: bool = False, order_is_asked: bool = False) -> None:
        """Compare a config with the data: what is found before an image is listed.

        Args:
            config: whose `name` is this source's.
            stored: of a run that there is: what was allowed when it was made is a warning.
            order_is_asked: whether `class_order` was asked for.

        Raises:
            UserError: the data are missing, or their classes are not those of the config.
        """

    @abstractmethod
    def open(self, config: DataConfig, split: Split | None = None) -> OpenedSource:
        """The pictures; of a split only what that needs.

        Raises:
            UserError: as `check`, and no pictures.
        """

    def missing(self, config: DataConfig) -> list[str]:
        """Roots of the config that are not there, as `field: path`; without them nothing can be checked."""
        roots = {"data.root": config.root, "data.heldout_root": config.heldout_root}
        return [f"{field}: {root}" for field, root in roots.items() if root and not Path(config.path(root)).exists()]

    def reading(self, config: DataConfig) -> Reading:
        """How its pictures are read, as `mvar.data.pictures` says."""
        return config.reading if self.has_readings else 2

    def shown(self, config: DataConfig) -> str:
        """Where the images are, for people."""
        roots = [plain(config.path(root)) for root in (config.root, config.heldout_root) if root]
        return " and ".join(roots) or config.name

    def resizes(self, config: DataConfig) -> bool:
        """Whether pictures are resized before they are cropped; not where they have the very size."""
        return True


def find(name: str) -> DataSource:
    """The data source of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    return SOURCES.find(name)()


def open_source(config: DataConfig, split: Split | None = None) -> OpenedSource:
    """The pictures of a config's source, as `DataSource.open`, which are what the contract says.

    Raises:
        UserError: as `DataSource.open`; a source of the user's own that gives something else, or one class only; says
            what.
    """
    found = find(config.name).open(config, split)
    if config.name in SOURCES.own:
        _check_opened(found, config)
    return found


def _check_opened(found: Any, config: DataConfig) -> None:
    where = f"data source {config.name!r}"
    if not isinstance(found, OpenedSource):
        raise UserError(f"{where}: open gives {quoted(found, 60)}; allowed: a mvar.OpenedSource")
    parts = [pictures for pictures in found[:2] if pictures is not None]
    if not parts:
        raise UserError(f"{where}: open gives no pictures; allowed: an OpenedSource with some")
    for pictures in parts:
        if lacks := [name for name in PICTURES if not hasattr(pictures, name)]:
            raise UserError(f"{where}: its pictures lack {', '.join(lacks)}; allowed: all of {', '.join(PICTURES)}")
        labels, count = np.asarray(pictures.labels), len(pictures.class_names)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
            told = f"{labels.dtype} of shape {labels.shape}"
            raise UserError(f"{where}: its labels are {told}; allowed: whole numbers of shape (N,), one or more")
        if labels.min() < 0 or labels.max() >= count:
            told = f"labels are {labels.min()} to {labels.max()}, of {counted(count, 'class')}"
            raise UserError(f"{where}: its {told}; allowed: 0 to {count - 1}")
    present = sorted({parts[0].class_names[label] for label in np.unique(parts[0].labels)})
    check_num_classes(present if len(present) == 1 else parts[0].class_names, config, where, "data.name")


class OtherNumberOfClasses(UserError):
    """The config has another number of classes than the data, whose `count` it is."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


def check_num_classes(names: Sequence[str], config: DataConfig, where: str, field: str = "data.root") -> None:
    count = len(names)
    if count == 1:
        raise UserError(f"{field}: {where} has one class only ({spelled(names[0])}); allowed: two or more")
    if count != config.num_classes:
        raise OtherNumberOfClasses(
            f"data.num_classes: {config.num_classes} does not fit {where}, which has {count} classes; allowed: {count}",
            count,
        )
