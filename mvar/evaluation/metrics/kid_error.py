"""KID's standard error, over other samples and other real images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.evaluation.metrics.inputs import Inputs


class KidError(Metric):
    """Standard error of KID over other samples and other held-out images, by Hoeffding's decomposition."""

    needs = ("features",)
    keys = ("eval/kid_se",)

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """A deviation, in KID's unit (`mvar.evaluation.mmd`): of the estimate over all images of both sets."""
        from mvar.evaluation.mmd import mmd_standard_error

        found = inputs.features
        return {"eval/kid_se": mmd_standard_error(found.samples, found.reference, inputs.device)}
