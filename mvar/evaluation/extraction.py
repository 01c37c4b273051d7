"""Features of whole image sets, batch by batch, by all processes of a job (`mvar.data.rounds`): no set is in memory at
any time. The first process adds them up.

What a metric needs all features for (KID, precision, recall) has them whole; what needs their mean and covariance alone
takes `statistics_of`, which keeps none.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg.blas import dsyrk  # pyright: ignore[reportAttributeAccessIssue]  made when it is imported
from torch import Tensor

from mvar.data.rounds import ALONE, Heed, Sharing, in_rounds, nothing
from mvar.errors import UserError
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.fidelity import Statistics
from mvar.evaluation.images import Images
from mvar.progress import Progress

BATCH_SIZE = 64
BLOCK_ROWS = 1024  # whose products are taken at once


@dataclass(frozen=True)
class Extracted:
    """What an extractor makes of N images, float64 on the CPU, rows in the order of the images.

    `features` `(N, F)`, `logits` `(N, K)`; `spatial` are the statistics of its spatial features, where they were asked
    for.
    """

    features: Tensor
    logits: Tensor
    spatial: Statistics | None = None


class Moments:
    """Mean and covariance of rows that come batch by batch, in float64 on the CPU; a block of rows is kept at a time.

    Sums are of differences to the first block's mean: equal large values cancel before they are squared.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[Tensor] = []
        self._shift = self._sum = torch.empty(0)
        self._products = np.empty((0, 0))  # its lower triangle

    def add(self, rows: Tensor) -> None:
        """Rows `(B, F)`."""
        self._waiting.append(rows.double().cpu())
        if sum(map(len, self._waiting)) >= BLOCK_ROWS:
            self._add_up()

    def _add_up(self) -> None:
        """Add what waits: products of few rows would be bound by the memory of the sums, not by arithmetic."""
        rows = torch.cat(self._waiting)
        self._waiting.clear()
        if not self.count:
            self._shift = rows.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._products = np.zeros(2 * self._shift.shape, order="F")
        rows -= self._shift
        self._sum += rows.sum(0)
        self._products = dsyrk(1.0, rows.numpy().T, beta=1.0, c=self._products, lower=1, overwrite_c=1)
        self.count += len(rows)

    def statistics(self) -> Statistics:
        """`mu` `(F,)` and `sigma` `(F, F)`, the latter over one less than the number of rows.

        Raises:
            UserError: fewer than two rows.
        """
        if self._waiting:
            self._add_up()
        if self.count < 2:
            raise UserError(f"images: {self.count} are too few for a covariance; allowed: 2 or more")
        mean = (self._sum / self.count).numpy()
        products = self._products + np.tril(self._products, -1).T
        sigma = (products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return {"mu": self._shift.numpy() + mean, "sigma": sigma}


def extract(
    extractor: Extractor,
    images: Images,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    group: Sharing = ALONE,
    spatial: bool = False,
    heed: Heed = nothing,
    keep: bool = True,
) -> Extracted:
    """Features and logits of a set, and the statistics of its spatial features; empty in all processes but the first.

    Args:
        extractor: the same in all processes.
        images: the same in all processes.
        batch_size: images a batch.
        progress: called with images done and in all.
        group: the processes that share the work; all of them call this.
        spatial: whether statistics of spatial features are wanted.
        heed: see `Heed`.
        keep: whether features and logits are wanted; without it they have no rows.

    Raises:
        UserError: spatial features of an extractor that has none.
    """
    call = extractor.with_spatial if spatial else extractor
    kept: list[Tensor] = []  # features and logits, each of all images from the first batch on: none is held twice
    moments, done = Moments(), 0
    for found in in_rounds(
        images.__getitem__, len(images), batch_size, lambda batch: call(batch), group, progress, heed
    ):
        kept = kept or [torch.empty(keep * len(images), *part.shape[1:], dtype=part.dtype) for part in found[:2]]
        stop = done + len(found[0])
        for whole, part in zip(kept if keep else (), found, strict=False):
            whole[done:stop] = part
        done = stop
        if spatial:
            moments.add(found[2])
    features, logits = kept or (torch.empty(0), torch.empty(0))
    return Extracted(features, logits, moments.statistics() if spatial and kept else None)


def statistics_of(extractor: Extractor, batches: Iterable[Tensor], spatial: bool = False) -> list[Statistics]:
    """Mean and covariance of the features of uint8 images `(B, ch, H, W)`, and of spatial ones: no features are held.

    They are those of torch-fidelity up to rounding (1e-11): not to its last digit, which FID of a run keeps.

    Raises:
        UserError: spatial features of an extractor that has none, or fewer than two images.
    """
    call = extractor.with_spatial if spatial else extractor
    moments = [Moments() for _ in range(1 + spatial)]
    for batch in batches:
        features, _, *maps = call(batch)
        for one, rows in zip(moments, (features, *maps), strict=True):
            one.add(rows)
    return [one.statistics() for one in moments]
