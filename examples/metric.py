"""A metric of one's own: maximum mean discrepancy with a Gaussian kernel (as CMMD of Jayasumana et al. 2024 has it).

    mvar run mixers --plugin examples/metric.py
    mvar evaluate RUN --plugin examples/metric.py --set evaluation.gaussian_mmd.bandwidth=5

Finished runs get it too: no image is drawn and nothing is trained again.
"""

import torch
from pydantic import Field

import mvar


@mvar.register("metric", "gaussian_mmd")
class GaussianMmd(mvar.Metric):
    """Squared maximum mean discrepancy of the features under a Gaussian kernel, unbiased, times 1,000."""

    version = 1  # the next one where the definition changes: values of two versions are never compared
    needs = ("features",)
    keys = ("eval/gaussian_mmd",)
    lower = keys

    class Settings(mvar.Config):
        bandwidth: float = Field(default=10.0, gt=0, description="Of the kernel, in units of the features.")

    def compute(self, inputs):
        samples, real = inputs.features.samples, inputs.features.reference
        if min(len(samples), len(real)) < 2:
            raise mvar.UserError(f"gaussian_mmd: {len(samples)} samples, {len(real)} real images; allowed: 2 or more")
        between = self.kernel(samples, real).mean()
        return {"eval/gaussian_mmd": 1000 * (self.within(samples) + self.within(real) - 2 * between).item()}

    def within(self, features):
        count = len(features)
        return (self.kernel(features, features).sum() - count) / (count * (count - 1))  # no image with itself

    def kernel(self, first, second):
        return torch.exp(-torch.cdist(first, second).square() / (2 * self.settings.bandwidth**2))
