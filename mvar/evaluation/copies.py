"""Near-copies of training images among the samples: what a low FID may owe to memory.

The yardstick is real data: how near to the training set do images come that were drawn from the same source but
never trained on? A sample is a near-copy when it lies nearer to its nearest training image than the nearest
`HELDOUT_QUANTILE` of the held-out images do, so a generator that draws new images as nature does scores about that
quantile, and one that memorises scores towards 1. A 1 % quantile would rest on three images of a held-out set of 300;
5 % rests on fifteen, a standard error of about 1.3 points.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mvar.errors import UserError
from mvar.evaluation.images import Images, Progress, check_same_size, in_turn

HELDOUT_QUANTILE = 0.05
MAX_SIDE = 32  # larger images are compared by their area averages: a pixel of noise does not hide a copy
BLOCK = 2048


def nearest_distances(images: Any, train_images: Any, progress: Progress | None = None) -> np.ndarray:
    """L2 distance of each image to its nearest training image, `(N,)`, in grey levels of 0 to 255.

    Images with a side of more than 32 px are area-averaged to 32 px and rounded first. Pixels are integers and the
    products are float64, so the distances are exact and 0 means the same pixels. Memory is bounded: the training
    images are read once, in blocks.

    Raises:
        UserError: not uint8, empty, or different sizes.
    """
    images, train_images = Images(images, "samples"), Images(train_images, "training images")
    check_same_size(images, train_images)
    return _nearest(_all_vectors(images), train_images, progress)


def _nearest(queries: Tensor, train_images: Images, progress: Progress | None) -> np.ndarray:
    squares = queries.square().sum(1)
    best = torch.full((len(queries),), torch.inf, dtype=torch.float64)
    for batch in train_images.batches(BLOCK, progress):
        keys = _vectors(batch)
        key_squares = keys.square().sum(1)
        for start in range(0, len(queries), BLOCK):
            part = slice(start, start + BLOCK)
            found = torch.addmm(key_squares, queries[part], keys.T, alpha=-2).amin(1) + squares[part]
            best[part] = torch.minimum(best[part], found)
    return best.sqrt().numpy()


def _all_vectors(images: Images, progress: Progress | None = None) -> Tensor:
    return torch.cat([_vectors(batch) for batch in images.batches(BLOCK, progress)])


def _vectors(batch: Tensor) -> Tensor:
    height, width = batch.shape[-2:]
    if max(height, width) > MAX_SIDE:
        side = (min(height, MAX_SIDE), min(width, MAX_SIDE))
        batch = functional.adaptive_avg_pool2d(batch.double(), side).round()
    return batch.flatten(1).double()


def copy_rate(
    samples: Any,
    train_images: Any,
    heldout_images: Any,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Share of samples that lie nearer to the training set than 5 % of the held-out images do.

    Args:
        samples: generated images, uint8 `(N, ch, H, W)` or an image set.
        train_images: what the generator was trained on.
        heldout_images: images of the same source that it was not trained on: they set the threshold.
        progress: called with images read and in all: of the three sets.

    Returns:
        `eval/copy_rate`; `eval/copy_rate_heldout`, the same share of the held-out images, about 0.05 by construction;
        `eval/copy_threshold`, the distance in grey levels; `eval/nn_distance_ratio`, the median nearest distance of
        the samples over that of the held-out images (below 1: nearer to the training set than new images are).

    Raises:
        UserError: not uint8, empty, different sizes, or held-out images that are all in the training set.
    """
    samples, train_images = Images(samples, "samples"), Images(train_images, "training images")
    heldout_images = Images(heldout_images, "held-out images")
    for images in (samples, heldout_images):
        check_same_size(images, train_images)
    reports = in_turn(progress, [len(samples), len(heldout_images), len(train_images)])
    sets = zip((samples, heldout_images), reports, strict=False)
    queries = torch.cat([_all_vectors(images, report) for images, report in sets])  # one pass over the training images
    distances, heldout = np.split(_nearest(queries, train_images, reports[-1]), [len(samples)])
    if np.median(heldout) == 0:
        raise UserError("held-out images: most are also training images; allowed: a split without duplicates")
    # "lower" takes a distance that occurs, so that the held-out share is the quantile to within one image.
    threshold = float(np.quantile(heldout, HELDOUT_QUANTILE, method="lower"))
    return {
        "eval/copy_rate": float((distances <= threshold).mean()),
        "eval/copy_rate_heldout": float((heldout <= threshold).mean()),
        "eval/copy_threshold": threshold,
        "eval/nn_distance_ratio": float(np.median(distances) / np.median(heldout)),
    }
