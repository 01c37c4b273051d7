"""FD-infinity: FID without most of its bias by the number of samples."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.evaluation.metrics.inputs import Inputs


class FdInfinity(Metric):
    """FID extrapolated to infinitely many samples, by a line in one over their number (Chong and Forsyth 2020)."""

    needs = ("features",)
    keys = ("eval/fd_infinity",)
    lower = keys

    @classmethod
    def by_default(cls, config: "RunConfig") -> bool:
        """Only where it is asked for."""
        return False

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """The line's value at 0; see `mvar.evaluation.fidelity.extrapolated_distance`."""
        from mvar.evaluation.fidelity import extrapolated_distance

        return {"eval/fd_infinity": extrapolated_distance(inputs.features.samples, inputs.reference_statistics)}
