"""sFID: FID of spatial features, which keep where in an image something is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mvar.evaluation.metrics.contract import Metric
from mvar.registries import EXTRACTORS

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.evaluation.metrics.inputs import Inputs


class Sfid(Metric):
    """Frechet distance of spatial features, for extractors that have such (Nash et al. 2021, as ADM computes it)."""

    needs = ("spatial",)
    keys = ("eval/sfid",)
    lower = keys

    @classmethod
    def applies(cls, config: "RunConfig") -> bool:
        """Where the extractor has spatial features."""
        return EXTRACTORS.find(config.evaluation.extractor).has_spatial()

    @classmethod
    def by_default(cls, config: "RunConfig") -> bool:
        """Only where it is asked for."""
        return False

    def compute(self, inputs: "Inputs") -> Mapping[str, float]:
        """By torch-fidelity, of statistics in double precision."""
        from mvar.evaluation.fidelity import distance_of

        samples, reference = inputs.spatial
        return {"eval/sfid": distance_of(samples, reference)}
