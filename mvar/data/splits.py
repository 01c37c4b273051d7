"""The images of a run, training and held-out: by a data source that keeps them apart, else a part of each class."""

import numpy as np

from mvar.config import DataConfig
from mvar.data.crops import ImageSet
from mvar.data.folders import spelled
from mvar.data.sources.contract import OpenedSource, Pictures, Split, find, open_source
from mvar.errors import UserError
from mvar.files import digest


def load_images(config: DataConfig, split: Split) -> ImageSet:
    """The images of a split.

    Without a held-out folder, `heldout_fraction` of each class (at least one image) is held out: those whose names
    have the lowest digests under `split_seed`, so that the split depends neither on the order of files nor, much, on
    which others there are.

    Raises:
        UserError: an unknown `name`; a folder is missing or empty, there is one class only, their number is not
            `num_classes`, a class is too small to be split, or the held-out folder has other classes.
    """
    return image_set(config, open_source(config, split), split)


def check_classes(config: DataConfig, stored: bool = False, order_is_asked: bool = False) -> None:
    """Compare a config with its data: what is found before an image is listed (`DataSource.check`)."""
    find(config.name).check(config, stored, order_is_asked)


def image_set(config: DataConfig, opened: OpenedSource, split: Split) -> ImageSet:
    """The images of a split of a data set that is open."""
    pictures = opened.heldout if opened.apart and split == "heldout" else opened.train
    assert pictures is not None  # the split that it was opened for
    indices = range(len(pictures.labels)) if opened.apart else indices_of(pictures, config, split)
    source = find(config.name)
    return ImageSet(pictures, indices, config, source.resizes(config), source.reading(config))


def indices_of(pictures: Pictures, config: DataConfig, split: Split) -> list[int]:
    """The numbers of the images of a split, by the digests of their names, class by class."""
    chosen: list[int] = []
    for label, name in enumerate(pictures.class_names):
        members = np.flatnonzero(pictures.labels == label).tolist()
        if len(members) < 2:
            raise UserError(
                f"data.root: class {spelled(name)} has 1 image; allowed: two or more (one is held out), or a "
                "data.heldout_root"
            )
        members.sort(key=lambda i: digest([config.split_seed, pictures.name(i)], length=64))
        count = min(max(round(config.heldout_fraction * len(members)), 1), len(members) - 1)
        chosen += members[:count] if split == "heldout" else members[count:]
    return sorted(chosen)
