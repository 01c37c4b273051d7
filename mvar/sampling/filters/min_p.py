"""Min-p: codes that are not too unlikely beside the likeliest one (Nguyen et al., arXiv:2407.01082)."""

import math
from typing import TYPE_CHECKING

from pydantic import Field

from mvar.config import Config, SampleConfig
from mvar.sampling.filters.contract import Filter

if TYPE_CHECKING:
    from torch import Tensor


class MinPSettings(Config):
    """How unlikely a code may be."""

    p: float = Field(default=0.05, gt=0, le=1, description="Least probability, relative to that of the likeliest code.")


class MinP(Filter):
    """Codes of at least `p` times the likeliest one's probability, among those that `top_k` and `top_p` keep.

    All three are bounds from below, so their order does not matter; `top_p=0` leaves min-p alone.
    """

    Settings = MinPSettings

    def kept(
        self, logits: "Tensor", scale: int, num_scales: int, sample: SampleConfig, settings: MinPSettings
    ) -> "Tensor | None":
        """As `Filter.kept`."""
        import torch  # here: a config's settings are read without it

        from mvar.sampling.filters.top import smallest_kept

        smallest = logits.amax(-1, keepdim=True) + math.log(settings.p)
        top = smallest_kept(logits, sample.top_k, sample.top_p)
        return smallest if top is None else torch.maximum(smallest, top)
