"""Precision and recall: the share of samples that look real, and of real images that samples look like."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.evaluation.metrics.inputs import Inputs


class PrecisionRecall(Metric):
    """Shares of samples among the surroundings of real images, and the other way (Kynkaanniemi et al. 2019)."""

    needs = ("features",)
    keys = ("eval/precision", "eval/recall")
    higher = ("eval/precision", "eval/recall")

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """Shares, 0 to 1, by torch-fidelity: generated images first, then real ones."""
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        found = prc_features_to_metric(
            inputs.features.samples,
            inputs.features.reference,
            prc_neighborhood=inputs.config.prc_neighborhood,
            save_cpu_ram=True,
            verbose=False,
        )
        return {"eval/precision": found[KEY_METRIC_PRECISION], "eval/recall": found[KEY_METRIC_RECALL]}
