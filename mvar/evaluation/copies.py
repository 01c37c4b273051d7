"""Near-copies of training images among the samples: what a low FID may owe to memory.

The yardstick is real data: how near to the training set do images come that were drawn from the same source but
never trained on? A sample is a near-copy when it lies nearer to its nearest training image than the nearest
`HELDOUT_QUANTILE` of the held-out images do, so a generator that draws new images as nature does scores about that
quantile, and one that memorises scores towards 1. A 1 % quantile would rest on three images of a held-out set of 300;
5 % rests on fifteen, a standard error of about 1.3 points.

Held-out images that are training images too (distance 0) say nothing of how near new images come: they are left out of
the yardstick, counted and said. Results of the first reading of such data (`DataConfig.reading`) keep them in.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mvar.errors import UserError, warn
from mvar.evaluation.images import Images, Spooled, check_same_size, in_turn
from mvar.progress import Progress

HELDOUT_QUANTILE = 0.05
MAX_SIDE = 32  # larger images are compared by their area averages: a pixel of noise does not hide a copy
BLOCK = 2048
READ = 64  # images that are in memory as they are: of 512 px 50 MB, averaged in float64 400


class Vectors:
    """Training images in the form in which they are compared, read from memory or a file in place of the images.

    Args:
        rows: uint8 `(N, F)`, from `compared`; may be a memory map.
        image_shape: `(ch, H, W)` of the images that they are of.
    """

    what = "training images"

    def __init__(self, rows: np.ndarray, image_shape: tuple[int, ...]) -> None:
        self.rows, self.image_shape = rows, image_shape

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self, progress: Progress | None = None) -> Iterator[Tensor]:
        """The rows in order, uint8 `(<= BLOCK, F)`."""
        for start in range(0, len(self), BLOCK):
            stop = min(start + BLOCK, len(self))
            yield torch.from_numpy(np.array(self.rows[start:stop]))  # a copy: the map is read-only
            if progress:
                progress(stop, len(self))


def compared(batch: Tensor) -> Tensor:
    """Images uint8 `(B, ch, H, W)` in the form in which they are compared: uint8 `(B, F)`.

    Sides of more than 32 px are area-averaged to 32 px and rounded; F = ch * min(H, 32) * min(W, 32).
    """
    height, width = batch.shape[-2:]
    if max(height, width) > MAX_SIDE:
        side = (min(height, MAX_SIDE), min(width, MAX_SIDE))
        batch = functional.adaptive_avg_pool2d(batch.double(), side).round().to(torch.uint8)
    return batch.flatten(1)


def nearest_distances(
    images: Any, train_images: Any, progress: Progress | None = None, device: torch.device | str = "cpu"
) -> np.ndarray:
    """L2 distance of each image to its nearest training image, `(N,)`, in grey levels of 0 to 255.

    Images are compared as `compared` gives them. Their pixels are integers, and products and sums are float64 on every
    device, far below 2^53: squared distances are exact, the same on CPU and GPU, and 0 means the same pixels. Memory
    is bounded by blocks of 2048 on the CPU, whose rest is in a temporary file; another device holds the images in the
    form in which they are compared, 3 kB each. The training images are read once. The products take
    2 F FLOPs a pair, 8e14 for 100,000 images against ImageNet's 1.28 million at F = 3072.

    Raises:
        UserError: not uint8, empty, or different sizes.
    """
    images, train_images = Images(images, "samples"), _training(train_images)
    check_same_size(images, train_images)
    return _nearest(_spooled([images]), train_images, progress, device)


def _training(images: Any) -> Images | Vectors:
    return images if isinstance(images, Vectors) else Images(images, "training images")


def _nearest(
    queries: Tensor, train_images: Images | Vectors, progress: Progress | None, device: torch.device | str
) -> np.ndarray:
    parts = queries.to(device).split(BLOCK)  # uint8: each block becomes float64 when it is its turn
    squares = [part.double().square().sum(1) for part in parts]
    best = [torch.full((len(part),), torch.inf, dtype=torch.float64, device=device) for part in parts]
    if isinstance(train_images, Vectors):
        blocks = train_images.blocks(progress)
    else:
        blocks = _blocks(_rows(train_images, progress))
    for block in blocks:
        keys = block.to(device).double()
        key_squares = keys.square().sum(1)
        for number, part in enumerate(parts):
            found = torch.addmm(key_squares, part.double(), keys.T, alpha=-2).amin(1) + squares[number]
            best[number] = torch.minimum(best[number], found)
    return torch.cat(best).sqrt().cpu().numpy()


def _rows(images: Images, progress: Progress | None = None) -> Iterator[Tensor]:
    return map(compared, images.batches(READ, progress))


def _blocks(parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same rows in blocks: products of few rows would be bound by memory."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= BLOCK:
            yield torch.cat(waiting)
            waiting.clear()
    if waiting:
        yield torch.cat(waiting)


def _spooled(sets: Sequence[Images], reports: Iterable[Progress | None] = repeat(None)) -> Tensor:
    """All images of some sets in the form in which they are compared, a map of a temporary file."""
    found, count, width = Spooled(), 0, 0
    for images, report in zip(sets, reports, strict=False):
        for rows in _rows(images, report):
            found.add(rows)
            count, width = count + len(rows), rows.shape[1]
    return torch.from_numpy(found.mapped(count, width))


def copy_rate(
    samples: Any,
    train_images: Any,
    heldout_images: Any,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Share of samples that lie nearer to the training set than 5 % of the held-out images do.

    Args:
        samples: generated images, uint8 `(N, ch, H, W)` or an image set.
        train_images: what the generator was trained on, all of it: an array, an image set, or its `Vectors`.
        heldout_images: images of the same source that it was not trained on: they set the threshold. Those that are
            training images too do not count, except in an image set of the first reading; a warning says how many.
        progress: called with images read and in all: of the three sets.
        device: where distances are computed; they are the same everywhere, see `nearest_distances`.

    Returns:
        `eval/copy_rate`; `eval/copy_rate_heldout`, the same share of the held-out images, about 0.05 by construction;
        `eval/copy_threshold`, the distance in grey levels; `eval/nn_distance_ratio`, the median nearest distance of
        the samples over that of the held-out images (below 1: nearer to the training set than new images are); where
        there are any, `eval/heldout_in_training`, the number of held-out images that are training images too.

    Raises:
        UserError: not uint8, empty, different sizes, or held-out images that are all in the training set.
    """
    samples, train_images = Images(samples, "samples"), _training(train_images)
    heldout_images = Images(heldout_images, "held-out images")
    for images in (samples, heldout_images):
        check_same_size(images, train_images)
    reports = in_turn(progress, [len(samples), len(heldout_images), len(train_images)])
    queries = _spooled((samples, heldout_images), reports)  # both: one pass over the training images
    distances, heldout = np.split(_nearest(queries, train_images, reports[-1], device), [len(samples)])
    if np.median(heldout) == 0:
        raise UserError("held-out images: most are also training images; allowed: a split without duplicates")
    both = heldout == 0
    found = {"eval/heldout_in_training": float(both.sum())} if both.any() else {}
    if both.any():
        first = getattr(heldout_images.source, "reading", 2) == 1
        told = "are counted, as in the first reading of data" if first else "are not counted"
        warn(
            f"held-out images: {both.sum()} of {len(heldout)} are also training images, which {told} in the threshold "
            "of near-copies"
        )
        heldout = heldout if first else heldout[~both]
    # "lower" takes a distance that occurs, so that the held-out share is the quantile to within one image.
    threshold = float(np.quantile(heldout, HELDOUT_QUANTILE, method="lower"))
    return {
        "eval/copy_rate": float((distances <= threshold).mean()),
        "eval/copy_rate_heldout": float((heldout <= threshold).mean()),
        "eval/copy_threshold": threshold,
        "eval/nn_distance_ratio": float(np.median(distances) / np.median(heldout)),
        **found,
    }
