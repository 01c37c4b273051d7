"""FID: how far the features of samples lie from those of real images, each set taken for a Gaussian."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.evaluation.metrics.inputs import Inputs


class Fid(Metric):
    """Frechet distance between Gaussians fitted to the features of samples and of reference (Heusel et al. 2017)."""

    needs = ("features",)
    keys = ("eval/fid",)
    lower = ("eval/fid",)

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """By torch-fidelity, in double precision."""
        from mvar.evaluation.fidelity import distance_of, statistics

        return {"eval/fid": distance_of(statistics(inputs.features.samples), inputs.reference_statistics)}
