"""A metric of one's own: density and coverage (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics").

    mvar run mixers --plugin examples/metric.py
    mvar evaluate RUN --plugin examples/metric.py --set evaluation.density_coverage.k=10

Finished runs get it too: no image is drawn and nothing is trained again.
"""

import torch
from pydantic import Field

import mvar


@mvar.register("metric", "density_coverage")
class DensityCoverage(mvar.Metric):
    """Real neighbourhoods that a sample lies in, over k; share of real images with a sample in theirs."""

    version = 1  # the next one where the definition changes: values of two versions are never compared
    needs = ("features",)
    keys = ("eval/density", "eval/coverage")
    higher = keys

    class Settings(mvar.Config):
        k: int = Field(default=5, ge=1, description="Nearest neighbour that bounds a real image's neighbourhood.")

    def compute(self, inputs):
        samples, real, k = inputs.features.samples, inputs.features.reference, self.settings.k
        if len(real) <= k:
            raise mvar.UserError(f"evaluation.density_coverage.k: {k}; allowed: fewer than the {len(real)} real images")
        radii = torch.cdist(real, real).kthvalue(k + 1).values  # the nearest one of all is the image itself
        distances = torch.cdist(real, samples)
        inside = distances <= radii[:, None]
        return {
            "eval/density": inside.sum().item() / (k * len(samples)),
            "eval/coverage": (distances.amin(1) <= radii).double().mean().item(),
        }
