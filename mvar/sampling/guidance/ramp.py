"""VAR's guidance: stronger with every scale."""

from typing import Any

from mvar.sampling.guidance.contract import Guidance, position


class Ramp(Guidance):
    """`t = cfg_scale * s / (S - 1)`: none at the first scale, all of it at the last (official code).

    A single scale, where the official code divides by zero, gets all of it.
    """

    def weight(self, scale: int, num_scales: int, cfg_scale: float, settings: Any) -> float:
        """As `Guidance.weight`."""
        return cfg_scale * position(scale, num_scales)
