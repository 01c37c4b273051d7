"""The mixer `markov`: attention over the last scales, a token's own included (Markov-VAR, HMAR, MVAR).

Between VAR's attention and M-VAR's: `markov:1` sees what `intra` sees, and with every scale of a schedule it is
`global`. Shapes: `B` batch, `L` tokens of a span, `D` width.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mvar.config import Config, ModelConfig
from mvar.kernels.attention import attend
from mvar.mixers.scale_attention import KeptKeys, ScaleAttention
from mvar.scales import ScaleSchedule, Span


class MarkovSettings(Config):
    """`markov:3` or `markov:w=3` in a pattern, `model.markov.w=3` for every `markov`."""

    w: int = Field(default=2, ge=1, description="Scales that a token sees, its own included.")


class MarkovAttention(ScaleAttention):
    """Attention of scale k over scales k - w + 1..k (arXiv:2506.04421, 2511.23334, 2505.12742).

    State: keys and values of w - 1 scales.
    """

    Settings = MarkovSettings
    settings: MarkovSettings
    examples = "1", "3"
    cuts = ("keys",)
    has_maps = True

    def forward(self, x: Tensor, span: Span, state: KeptKeys | None = None) -> tuple[Tensor, KeptKeys | None]:
        """See `Mixer.forward`."""
        reach = self.settings.w
        q, k, v = self.project(x)
        known = KeptKeys.followed_by(state, k, v)
        y = self.merge(
            attend(q, *known, span, reach=reach, backend=self.runtime.attention_backend, severed=self.severed)
        )
        if span.is_last:
            return y, None
        return y, known.last(span.stop - span.unseen(span.last, reach))

    @classmethod
    def visible(cls, settings: MarkovSettings, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """See `Mixer.visible`: the own scale and the w - 1 before it."""
        levels = np.array(schedule.levels)
        back = levels[:, None] - levels
        return (back >= 0) & (back < settings.w)

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: MarkovSettings, span: Span) -> int:
        """See `Mixer.score_cells`: n_k times n_{k-w+1} + ... + n_k."""
        return sum(span.schedule.lengths[k] * span.visible(k, settings.w) for k in span.scales)

    @classmethod
    def state_bytes(
        cls, config: ModelConfig, settings: MarkovSettings, schedule: ScaleSchedule, element_bytes: int
    ) -> int:
        """See `Mixer.state_bytes`: keys and values of the w - 1 scales before the last, the largest."""
        return 2 * sum(schedule.lengths[-settings.w : -1]) * config.width * element_bytes
