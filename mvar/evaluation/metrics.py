"""FID, IS, KID, precision and recall of a set of samples, by torch-fidelity on a registered extractor."""

from functools import cache
from typing import Any

from mvar.config import IS_SPLITS, EvaluationConfig
from mvar.errors import UserError
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.images import Images, check_same_size, in_turn
from mvar.progress import Progress

RNG_SEED = 2020  # torch-fidelity's own default, written down: KID's subsets and IS's shuffle hang on it
BATCH_SIZE = 64
NAMES = {
    "eval/fid": "frechet_inception_distance",
    "eval/is": "inception_score_mean",
    "eval/is_sd": "inception_score_std",
    "eval/kid": "kernel_inception_distance_mean",
    "eval/kid_sd": "kernel_inception_distance_std",
    "eval/precision": "precision",
    "eval/recall": "recall",
}


@cache
def _registered() -> str:
    """Register the adapter with torch-fidelity once a process; the name under which it is found."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor

    class Adapter(FeatureExtractorBase):
        """Shows an `Extractor`, handed on by `calculate_metrics`, to torch-fidelity; counts the images it is shown."""

        def __init__(
            self,
            name: str,
            features_list: list[str],
            *,
            mvar_extractor: Extractor,
            mvar_progress: Progress,
            mvar_total: int,
            **kwargs: Any,
        ) -> None:
            super().__init__(name, features_list)
            self.extractor, self.progress = mvar_extractor, mvar_progress
            self.done, self.total = 0, mvar_total

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images):
            parts = dict(zip(("features", "logits"), self.extractor(images), strict=True))
            self.done += len(images)
            self.progress(self.done, self.total)
            return tuple(parts[name] for name in self.features_list)

    register_feature_extractor("mvar", Adapter)
    return "mvar"


def image_metrics(
    samples: Any,
    reference: Any,
    extractor: Extractor,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> dict[str, float]:
    """FID, IS, KID, precision and recall of samples against reference images, by torch-fidelity.

    The result does not depend on the order of the samples, and is the same every time: samples are put into the order
    of their content, and every random choice has a fixed seed. KID subsets hold `config.kid_subset_size` images, or
    as many as the smaller set has; the size used is in the result.

    Args:
        samples: generated images, uint8 `(N, ch, H, W)` or an image set.
        reference: real images (torch-fidelity's `input2`), of the same size.
        extractor: maps images to features and logits.
        config: sizes of KID's subsets and of the neighbourhood of precision and recall.
        progress: called with images done and in all; the samples count twice, since they are put into order first.

    Returns:
        `eval/fid`, `eval/is`, `eval/is_sd` (over 10 splits), `eval/kid`, `eval/kid_sd` (over 100 subsets),
        `eval/kid_subset_size`, `eval/precision` and `eval/recall` (shares, 0 to 1; Kynkaanniemi et al. 2019).

    Raises:
        UserError: too few images, not uint8, or different sizes.
    """
    samples, reference = Images(samples, "samples"), Images(reference, "reference images")
    check_same_size(samples, reference)
    _check_count(samples, config.least_images)
    check_reference(reference, config)
    subset_size = min(config.kid_subset_size, len(samples), len(reference))
    extracted = len(samples) + len(reference)
    ordering, extracting = in_turn(progress, [len(samples), extracted])
    from torch_fidelity import calculate_metrics

    values = calculate_metrics(
        input1=samples.in_content_order(ordering),  # the order of the arguments is precision's: generated, then real
        input2=reference,
        feature_extractor=_registered(),
        mvar_extractor=extractor,
        mvar_progress=extracting,
        mvar_total=extracted,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=IS_SPLITS,
        kid_subset_size=subset_size,
        prc_neighborhood=config.prc_neighborhood,
        rng_seed=RNG_SEED,
        batch_size=BATCH_SIZE,
        cuda=extractor.device.type == "cuda",
        save_cpu_ram=True,  # otherwise it forks data-loading workers
        cache=False,  # its key has no digest of weights or images
        verbose=False,
    )
    return {ours: float(values[theirs]) for ours, theirs in NAMES.items()} | {
        "eval/kid_subset_size": float(subset_size)
    }


def check_reference(reference: Any, config: EvaluationConfig) -> None:
    """Raise a `UserError` where there are too few real images to measure against."""
    _check_count(Images(reference, "reference images"), max(2, config.prc_neighborhood + 1))


def _check_count(images: Images, least: int) -> None:
    if len(images) < least:
        raise UserError(
            f"{images.what}: {len(images)} images are too few; allowed: {least} or more "
            "(evaluation.num_images, data.heldout_fraction, evaluation.prc_neighborhood)"
        )


def frechet_distance(features, reference_features) -> float:
    """FID between two sets of features `(N, F)`, float64: torch-fidelity's, for features that are already there."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    first, second = fid_features_to_statistics(features), fid_features_to_statistics(reference_features)
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]
