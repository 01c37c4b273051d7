"""Guidance in some scales only, as in a limited interval of noise levels (Kynkäänniemi et al., arXiv:2404.07724)."""

from typing import Self

from pydantic import Field, model_validator

from mvar.config import Config
from mvar.sampling.guidance.contract import Guidance, position


class IntervalSettings(Config):
    """Which scales are guided, by their position: 0 the coarsest, 1 the finest, s / (S - 1) between them."""

    low: float = Field(default=0.2, ge=0, le=1, description="Position of the first scale that is guided.")
    high: float = Field(default=0.8, ge=0, le=1, description="Position of the last scale that is guided.")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"sample.interval.low: {self.low:g} is above high; allowed: at most {self.high:g}")
        return self


class Interval(Guidance):
    """`t = cfg_scale` at the scales from `low` to `high`, both included; 0 at the others."""

    Settings = IntervalSettings

    def weight(self, scale: int, num_scales: int, cfg_scale: float, settings: IntervalSettings) -> float:
        """As `Guidance.weight`."""
        return cfg_scale if settings.low <= position(scale, num_scales) <= settings.high else 0.0
