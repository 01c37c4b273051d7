"""Guidance as elsewhere: equally strong throughout (Ho and Salimans, arXiv:2207.12598)."""

from typing import Any

from mvar.sampling.guidance.contract import Guidance


class Constant(Guidance):
    """`t = cfg_scale` at every scale."""

    def weight(self, scale: int, num_scales: int, cfg_scale: float, settings: Any) -> float:
        """As `Guidance.weight`."""
        return cfg_scale
