"""KID: as FID without a Gaussian, and without a bias by the number of images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.evaluation.metrics.inputs import Inputs


class Kid(Metric):
    """Squared maximum mean discrepancy of the features, cubic kernel, over 100 subsets (Binkowski et al. 2018)."""

    needs = ("features",)
    keys = ("eval/kid", "eval/kid_sd", "eval/kid_subset_size")
    lower = ("eval/kid",)

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """Mean and standard deviation over the subsets, by torch-fidelity.

        Subsets hold `evaluation.kid_subset_size` images, or as many as the smaller set has: the size is in the result.
        """
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        from mvar.evaluation.fidelity import RNG_SEED

        sets = inputs.features.samples, inputs.features.reference
        size = min(inputs.config.kid_subset_size, *map(len, sets))
        found = kid_features_to_metric(*sets, kid_subset_size=size, rng_seed=RNG_SEED, verbose=False)
        return {
            "eval/kid": found[KEY_METRIC_KID_MEAN],
            "eval/kid_sd": found[KEY_METRIC_KID_STD],
            "eval/kid_subset_size": float(size),
        }
