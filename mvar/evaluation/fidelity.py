"""What the metrics of torch-fidelity share: its seed, how many images they need, and FID of two sets of features."""

from typing import Any

from torch import Tensor

from mvar.config import EvaluationConfig
from mvar.errors import UserError
from mvar.evaluation.images import Images

RNG_SEED = 2020  # torch-fidelity's own default, written down: KID's subsets and IS's shuffle hang on it


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
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    first, second = fid_features_to_statistics(features), fid_features_to_statistics(reference_features)
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]
