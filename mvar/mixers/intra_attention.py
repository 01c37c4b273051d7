"""The mixer `intra`: M-VAR's attention within a scale.

Shapes: `B` batch, `L` tokens of a span, `D` width.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mvar.config import ModelConfig
from mvar.kernels.attention import attend
from mvar.mixers.scale_attention import ScaleAttention
from mvar.scales import ScaleSchedule, Span


class IntraScaleAttention(ScaleAttention):
    """M-VAR's intra-scale attention (paper, Eq. 4-5): a scale attends to itself. No state."""

    cuts = ("keys",)
    has_maps = True

    def forward(self, x: Tensor, span: Span, state: None = None) -> tuple[Tensor, None]:
        """See `Mixer.forward`."""
        q, k, v = self.project(x)
        y = attend(q, k, v, span, reach=1, backend=self.runtime.attention_backend, severed=self.severed)
        return self.merge(y), None

    @classmethod
    def visible(cls, settings: None, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """See `Mixer.visible`: the own scale."""
        levels = np.array(schedule.levels)
        return levels[:, None] == levels

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: None, span: Span) -> int:
        """See `Mixer.score_cells`: n_k squared."""
        return sum(span.schedule.lengths[k] ** 2 for k in span.scales)

    @classmethod
    def state_bytes(cls, config: ModelConfig, settings: None, schedule: ScaleSchedule, element_bytes: int) -> int:
        """See `Mixer.state_bytes`: none."""
        return 0
