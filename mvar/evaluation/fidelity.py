"""What metrics of two sets of features share: torch-fidelity's seed and FID, image counts, and our own of such metrics.

Shapes: N samples, M reference images, F features; float64 on the CPU.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.config import EvaluationConfig
from mvar.errors import UserError
from mvar.evaluation.images import Images

Statistics = dict[str, np.ndarray]  # `mu` (F,) and `sigma` (F, F), float64
RNG_SEED = 2020  # torch-fidelity's own default, written down: KID's subsets and IS's shuffle hang on it
NUM_SIZES = 15  # points of the line of FD-infinity, as its authors have them
SMALLEST = 0.1  # share of the samples in the smallest of its sets: the authors' 5,000 of 50,000
BLOCK = 4096  # rows whose distances are in memory at once


def check_counts(samples: Images, reference: Images, config: EvaluationConfig) -> None:
    """Raise a `UserError` where there are too few images to measure."""
    _check_count(samples, config.least_images)
    check_reference(reference, config)


def check_reference(reference: Any, config: EvaluationConfig) -> None:
    """Raise a `UserError` where there are too few real images to measure against."""
    _check_count(Images(reference, "reference images"), max(2, config.prc_neighborhood + 1))


def _check_count(images: Images, least: int) -> None:
    if len(images) < least:
        raise UserError(
            f"{images.what}: {len(images)} images are too few; allowed: {least} or more "
            "(evaluation.num_images, data.heldout_fraction, evaluation.prc_neighborhood)"
        )


def frechet_distance(features: Tensor, reference_features: Tensor) -> float:
    """FID between two sets of features `(N, F)`, float64: torch-fidelity's, for features that are already there."""
    return distance_of(statistics(features), statistics(reference_features))


def statistics(features: Tensor) -> Statistics:
    """Mean `mu` `(F,)` and covariance `sigma` `(F, F)` of features `(N, F)`, by torch-fidelity."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    return fid_features_to_statistics(features)


def distance_of(first: Statistics, second: Statistics) -> float:
    """Frechet distance between two Gaussians, each with `mu` and `sigma`, by torch-fidelity."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]


def extrapolated_distance(features: Tensor, reference: Statistics | Tensor) -> float:
    """FD-infinity: FID of `NUM_SIZES` random parts of the samples, of `SMALLEST` to all of them in equal steps, and
    the value at 0 of their least-squares line in 1 / size.

    The bias that is taken off is that of the number of samples; the reference's own stays. The parts are drawn with
    one fixed seed, each without replacement. May be below 0.

    Args:
        features: of the samples, `(N, F)`.
        reference: features `(M, F)`, or their `statistics`.
    """
    against = statistics(reference) if isinstance(reference, Tensor) else reference
    rng = np.random.default_rng(RNG_SEED)
    count = len(features)
    sizes = np.linspace(max(2, SMALLEST * count), count, NUM_SIZES).round().astype(int)
    parts = (features[torch.from_numpy(rng.permutation(count)[:size])] for size in sizes)
    values = [distance_of(statistics(part), against) for part in parts]
    _, at_zero = np.polyfit(1 / sizes, values, 1)
    return float(at_zero)


def density_and_coverage(samples: Tensor, reference: Tensor, neighbours: int) -> tuple[float, float]:
    """Density and coverage of samples `(N, F)` against real images `(M, F)`.

    A real image's surroundings end at its `neighbours`-th nearest other real image, the border not included: so
    real images against themselves have density 1.

    Raises:
        UserError: no more real images than `neighbours`.
    """
    if len(reference) <= neighbours:
        raise UserError(f"reference images: {len(reference)} are too few; allowed: more than {neighbours}")
    inside, covered = 0, 0
    for real in reference.split(BLOCK):
        among = torch.cat([torch.cdist(real, part) for part in reference.split(BLOCK)], dim=1)
        radii = among.kthvalue(neighbours + 1).values[:, None]  # the nearest one of all is the image itself
        within = [torch.cdist(real, part) < radii for part in samples.split(BLOCK)]
        inside += sum(int(found.sum()) for found in within)
        covered += int(torch.stack([found.any(1) for found in within]).any(0).sum())
    return inside / (neighbours * len(samples)), covered / len(reference)
