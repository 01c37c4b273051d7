"""What sources have in common that keep training images in `data.root`, and perhaps held-out ones in another root."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from mvar.data.folders import spelled
from mvar.data.pictures import plain
from mvar.data.sources.contract import DataConfig, DataSource, OpenedSource, Pictures, Split, check_num_classes
from mvar.errors import UserError, counted

SHOWN_CLASSES = 5
MAX_CLASSES = 1 << 20  # beyond, a label is damage; more only where the config has them


class RootedSource(DataSource):
    """Both roots have one layout, and the same classes. A root is opened for `check`, which small indices allow."""

    in_memory = False
    takes_heldout = True
    name: ClassVar[str]
    layout: ClassVar[str]
    """What a root must be, for messages."""

    @abstractmethod
    def pictures(self, root: Path, field: str, config: DataConfig) -> Pictures:
        """The pictures of a root, which is there; `field` of the config names it in messages."""

    def check(self, config: DataConfig, stored: bool = False, order_is_asked: bool = False) -> None:
        """Open both roots, and compare their classes with the config's."""
        self.open(config)

    def open(self, config: DataConfig, split: Split | None = None) -> OpenedSource:
        """The pictures of both roots, or of the one that a split needs.

        Raises:
            UserError: a root that is missing or cannot be read; one class only; another number of classes; a class of
                the training images without one.
        """
        apart = bool(config.heldout_root)
        train = heldout = None
        if not (apart and split == "heldout"):
            train = self._pictures(config.root, "data.root", config)
            check_each_class(train, "data.root")
        if apart and split != "train":
            heldout = self.heldout(config, train)
        return OpenedSource(train, heldout, apart)

    def heldout(self, config: DataConfig, train: Pictures | None) -> Pictures:
        """The pictures of the held-out root, of the classes of the training pictures, where these were opened.

        Raises:
            UserError: as `open`.
        """
        found = self._pictures(config.heldout_root, "data.heldout_root", config)
        if train is not None and found.class_names != train.class_names:
            raise other_classes(train.class_names, found.class_names, config)
        return found

    def _root(self, given: str | None, field: str, config: DataConfig) -> Path:
        if not given:
            raise UserError(f"{field}: not set; allowed: {self.layout}, which data.name={self.name} needs")
        root = Path(config.path(given))
        if not root.exists():
            raise UserError(f"{field}: {plain(root)} is not there; allowed: {self.layout}")
        return root

    def _pictures(self, given: str | None, field: str, config: DataConfig) -> Pictures:
        root = self._root(given, field, config)
        found = self.pictures(root, field, config)
        if not len(found.labels):
            raise UserError(f"{field}: {plain(root)} has no images; allowed: {self.layout}")
        if field == "data.root" and len(present := np.unique(found.labels)) == 1:
            check_num_classes([found.class_names[present[0]]], config, plain(root))
        if field == "data.root" or len(found.class_names) > config.num_classes:
            check_num_classes(found.class_names, config, plain(root))
        return found


def check_each_class(pictures: Pictures, field: str) -> None:
    """Refuse classes of which there is no image."""
    counts = np.bincount(pictures.labels, minlength=len(pictures.class_names))
    empty = [spelled(pictures.class_names[label]) for label in np.flatnonzero(counts == 0)]
    if empty:
        shown = ", ".join(empty[:SHOWN_CLASSES]) + (", ..." if len(empty) > SHOWN_CLASSES else "")
        lowest, highest = pictures.labels.min(), pictures.labels.max()
        told = f"no image of {counted(len(empty), 'class')} ({shown}), labels are {lowest} to {highest}"
        raise UserError(f"{field}: {told}; allowed: one or more of each")


def other_classes(trained: Sequence[str], heldout: Sequence[str], config: DataConfig) -> UserError:
    """The error for held-out images of other classes."""
    differing = sorted(set(trained) ^ set(heldout)) or [*heldout]
    shown = ", ".join(map(spelled, differing[:SHOWN_CLASSES])) + (", ..." if len(differing) > SHOWN_CLASSES else "")
    return UserError(
        f"data.heldout_root: {plain(config.path(config.heldout_root or ''))} and "
        f"{plain(config.path(config.root or ''))} differ in classes ({shown}); allowed: the same classes"
    )


def named_classes(labels: np.ndarray, names: Sequence[str] | None, num_classes: int, field: str) -> list[str]:
    """A name for each label: those that are given, else numbers, as many as there are.

    Of held-out images at least as many as the config has: they need not be of every class.

    Raises:
        UserError: labels that are negative, or have no name.
    """
    lowest, highest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if names is None and highest < max(num_classes, MAX_CLASSES):
        at_least = 0 if field == "data.root" and lowest >= 0 else num_classes
        names = [str(label) for label in range(max(highest + 1, at_least))]
    if names is None:
        raise UserError(f"{field}: label {highest} is too large; allowed: 0 to {max(num_classes, MAX_CLASSES) - 1}")
    if lowest < 0 or highest >= len(names):
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"{field}: label {wrong} has no class; allowed: 0 to {len(names) - 1}")
    return list(names)


def class_list(path: Path, field: str) -> list[str] | None:
    """The names in a text file, a line each, by label; None where there is no such file.

    Raises:
        UserError: two classes of one name, or a file that is no text.
    """
    try:
        names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}: {plain(path)} cannot be read ({error}); allowed: a class name a line") from None
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"{field}: {plain(path)} names {spelled(twice)} twice; allowed: a class name a line")
    return names
