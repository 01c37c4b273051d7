"""Samples and real images to be shown side by side: the same classes, the first images of each, as one picture."""

import math
from pathlib import Path

import numpy as np

from mvar.config import RunConfig
from mvar.data import npz
from mvar.data.splits import load_images

CLASSES, PER_CLASS = 10, 6


def tile(images: np.ndarray) -> np.ndarray:
    """`(rows, columns, H, W, channels)` uint8 as one picture, white lines between."""
    gap = max(1, images.shape[2] // 16)
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, height, width, channels = padded.shape
    sheet = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return sheet[:-gap, :-gap]


def first_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Indices `(classes, per class)` of the first images of the first classes."""
    classes = np.unique(labels)[:CLASSES]
    count = min(PER_CLASS, *(int((labels == c).sum()) for c in classes))
    return np.stack([np.flatnonzero(labels == c)[:count] for c in classes])


def read_samples(path: Path) -> np.ndarray:
    """The first samples of the first classes, `(classes, per class, H, W, channels)`; reads no more of the file."""
    with npz.opened(path) as archive:
        labels = npz.whole(archive, "labels", "<i8", (None,))
        chosen = first_of_each_class(labels)
        # tens of gigabytes for ImageNet: not read whole
        with npz.array(archive, "arr_0", "uint8", (len(labels), None, None, None)) as (file, shape):
            start, size = file.tell(), math.prod(shape[1:])
            found = {}
            for index in sorted(chosen.flat):
                file.seek(start + int(index) * size)
                found[index] = np.frombuffer(file.read(size), np.uint8).reshape(shape[1:])
    return np.stack([np.stack([found[index] for index in row]) for row in chosen])


def real_images(config: RunConfig) -> np.ndarray:
    """The first held-out images of the first classes, as `read_samples` gives samples."""
    images = load_images(config.data, "heldout")
    chosen = first_of_each_class(np.asarray(images.labels))
    return np.stack([np.stack([np.moveaxis(images.image(int(i), None), 0, -1) for i in row]) for row in chosen])
