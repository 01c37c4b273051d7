"""The inception score: how sure a classifier is of each sample, and how many classes it finds among all."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.evaluation.metrics.inputs import Inputs


class InceptionScore(Metric):
    """exp of the mean KL divergence of p(class | image) from p(class), over 10 splits (Salimans et al. 2016)."""

    needs = ("features",)
    keys = ("eval/is", "eval/is_sd")
    higher = ("eval/is",)

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """Mean and standard deviation over the splits, by torch-fidelity."""
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        from mvar.config import IS_SPLITS
        from mvar.evaluation.fidelity import RNG_SEED

        found = isc_features_to_metric(inputs.features.logits, splits=IS_SPLITS, shuffle=True, rng_seed=RNG_SEED)
        return {"eval/is": found[KEY_METRIC_ISC_MEAN], "eval/is_sd": found[KEY_METRIC_ISC_STD]}
