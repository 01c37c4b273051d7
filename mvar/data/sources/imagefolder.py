"""`data.name=imagefolder`: a folder with a subfolder a class, and perhaps another one of held-out images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mvar.config import DataConfig
from mvar.data.folders import LAYOUT, FolderSource, class_folders, in_order, one_form, spelled
from mvar.data.pictures import plain
from mvar.data.sources.contract import DataSource, OpenedSource, Split, check_num_classes
from mvar.errors import UserError, warn


class ImageFolder(DataSource):
    """Folders as mvar.data.folders reads them."""

    in_memory = False
    has_readings = True
    takes_heldout = True

    def missing(self, config: DataConfig) -> list[str]:
        """Roots that are no folders."""
        roots = {"data.root": config.root, "data.heldout_root": config.heldout_root}
        return [f"{field}: {root}" for field, root in roots.items() if root and not Path(config.path(root)).is_dir()]

    def check(self, config: DataConfig, stored: bool = False, order_is_asked: bool = False) -> None:
        """Compare the config with the folders and their class subfolders.

        Args:
            config: of a folder.
            stored: of a run that there is: the order of its classes, which nothing can change any more, is not spoken
                of.
            order_is_asked: else a warning says where the other order is another.

        Raises:
            UserError: a missing folder, other classes; a held-out folder that is the training folder, or lies in it.
        """
        names = folder_classes(config).train
        if config.heldout_root and (together := _lie_together(config)):
            if not stored:
                raise UserError(f"{together}; allowed: folders apart, or none for a part of data.root")
            warn(f"{together}: images that were trained on measure the run")
        if config.class_order == "name" and not stored and not order_is_asked:
            warn_of_order(names, "data.class_order: name", "data.class_order=number, in whose order")

    def open(self, config: DataConfig, split: Split | None = None) -> OpenedSource:
        """The training folder and the held-out one, if the config has it; of a split only what that needs."""
        names, apart = folder_classes(config), bool(config.heldout_root)
        train = heldout = None
        if not (apart and split == "heldout"):
            train = FolderSource(config.path(config.root or ""), "data.root", config.reading, class_names=names.train)
        if apart and split != "train":
            root = config.path(config.heldout_root or "")
            heldout = FolderSource(root, "data.heldout_root", config.reading, class_names=names.heldout)
        return OpenedSource(train, heldout, apart)


class _Classes(NamedTuple):
    """The class subfolders of both roots, in the order of their labels: names of one class may be written otherwise."""

    train: list[str]
    heldout: list[str]  # empty without a held-out folder


def folder_classes(config: DataConfig) -> _Classes:
    if not config.root:
        raise UserError(f"data.root: not set; allowed: {LAYOUT}, which data.name=imagefolder needs")
    root = config.path(config.root)
    names = class_folders(Path(root), "data.root", config.reading, config.class_order)
    check_num_classes(names, config, plain(root))
    if not config.heldout_root:
        return _Classes(names, [])
    heldout = class_folders(Path(config.path(config.heldout_root)), "data.heldout_root", config.reading)
    return _Classes(names, _matched(names, heldout, config))


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
    given = f"data.heldout_root: {plain(config.path(config.heldout_root or ''))}"
    if train == heldout or (train.stat().st_dev, train.stat().st_ino) == (heldout.stat().st_dev, heldout.stat().st_ino):
        return f"{given} is data.root"
    if train in heldout.parents:
        return f"{given} lies in data.root ({plain(train)})"
    return f"{given} holds data.root ({plain(train)})" if heldout in train.parents else None


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
            f"data.heldout_root: {plain(config.path(config.heldout_root or ''))} and "
            f"{plain(config.path(config.root or ''))} differ in {len(differing)} classes ({shown_names}); allowed: the "
            "same class subfolders"
        )
    return [names[form] for form in forms]
