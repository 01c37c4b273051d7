"""Density and coverage: as precision and recall, but one odd real image does not make a whole region look real."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from mvar.config import Config
from mvar.evaluation.metrics.contract import Metric

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.evaluation.metrics.inputs import Inputs


class DensityCoverage(Metric):
    """Real surroundings that a sample lies in, over k; real images with a sample in theirs, a share (Naeem et al.)."""

    needs = ("features",)
    keys = ("eval/density", "eval/coverage")
    higher = keys

    class Settings(Config):
        """The paper's k."""

        k: int = Field(default=5, ge=1, description="Nearest neighbour that bounds a real image's surroundings.")

    @classmethod
    def by_default(cls, config: "RunConfig") -> bool:
        """Only where it is asked for."""
        return False

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """Density, 0 or more and 1 for real images; coverage, a share of 0 to 1."""
        from mvar.evaluation.fidelity import density_and_coverage

        features, settings = inputs.features, self.settings or self.Settings()
        density, coverage = density_and_coverage(features.samples, features.reference, settings.k)
        return {"eval/density": density, "eval/coverage": coverage}
