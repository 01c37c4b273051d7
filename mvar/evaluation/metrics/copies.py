"""Near-copies of training images among the samples."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.evaluation.metrics.inputs import Inputs


class Copies(Metric):
    """Share of samples that lie nearer to a training image than the nearest 5 % of held-out images do."""

    needs = ("samples", "heldout", "train")
    keys = ("eval/copy_rate", "eval/copy_rate_heldout", "eval/copy_threshold")
    also = ("eval/nn_distance_ratio", "eval/heldout_in_training")
    lower = ("eval/copy_rate",)

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """By exact distances of pixels (`mvar.evaluation.copies`)."""
        from mvar.evaluation.copies import copy_rate

        return copy_rate(inputs.samples, inputs.train, inputs.heldout, inputs.progress, inputs.device)
