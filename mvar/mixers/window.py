"""The mixer `window`: attention over a neighbourhood in the own scale, and over the same place in the coarser one.

The spatial half of MVAR (arXiv:2505.12742), with neighbourhoods as in NAT (arXiv:2204.07143): at the border they are
moved inside, so that every token of a scale sees equally many. Shapes: `B` batch, `L` tokens of a span, `D` width,
`M` keys of a query.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from mvar.config import Config, ModelConfig
from mvar.kernels.attention import attend_chosen
from mvar.kernels.constants import kept_on_device
from mvar.mixers.scale_attention import KeptKeys, ScaleAttention
from mvar.scales import ScaleSchedule, Span


class WindowSettings(Config):
    """`window:5` or `window:k=5` in a pattern, `model.window.k=5` for every `window`."""

    k: int = Field(default=3, ge=1, description="Side of the neighbourhood in tokens, in either scale.")


def neighbours(side: int, other: int, k: int) -> NDArray[np.int64]:
    """Tokens of a map that each token of another sees: a square of k x k around its place, or all where k is more.

    Args:
        side: of the map that sees.
        other: of the map that is seen; the place of row i in it is row `floor((i + 1/2) other / side)`.
        k: side of the square.

    Returns:
        `(side * side, M)` in raster order, `M = min(k, other) ** 2`.
    """
    reach = min(k, other)
    place = (2 * np.arange(side) + 1) * other // (2 * side)
    first = np.clip(place - (k - 1) // 2, 0, other - reach)
    lines = first[:, None] + np.arange(reach)  # (side, reach), rows or columns
    found = lines[:, None, :, None] * other + lines[None, :, None, :]
    return found.reshape(side * side, reach * reach)


@kept_on_device
def seen(schedule: ScaleSchedule, scale: int, k: int, device: torch.device) -> Tensor:
    """Keys of every query of a scale, `(n, M)`, from the first token of the coarser scale on (of the own, at 0)."""
    sides = schedule.sides
    own = neighbours(sides[scale], sides[scale], k)
    if scale:
        coarser = neighbours(sides[scale], sides[scale - 1], k)
        own = np.concatenate((coarser, own + schedule.lengths[scale - 1]), axis=1)
    with torch.inference_mode(False):  # kept: the next call may want gradients
        return torch.from_numpy(own).to(device)


class WindowAttention(ScaleAttention):
    """Attention over k x k tokens of the own scale and k x k of the coarser one. State: its keys and values."""

    Settings = WindowSettings
    settings: WindowSettings
    examples = "1", "2", "5"
    cuts = ("keys",)
    has_maps = True

    def forward(self, x: Tensor, span: Span, state: KeptKeys | None = None) -> tuple[Tensor, KeptKeys | None]:
        """See `Mixer.forward`."""
        q, k, v = self.project(x)
        known = KeptKeys.followed_by(state, k, v)
        before, outputs = span.stop - known.keys.shape[2], []
        for scale, queries in zip(
            span.scales, q.split([span.schedule.lengths[s] for s in span.scales], 2), strict=True
        ):
            keys = slice(span.unseen(scale, 2) - before, span.schedule.offsets[scale + 1] - before)
            index = seen(span.schedule, scale, self.settings.k, x.device)
            at = (span.schedule.offsets[scale], before + keys.start)
            kept = (known.keys[:, :, keys], known.values[:, :, keys])
            outputs.append(attend_chosen(queries, *kept, index, self.severed, *at))
        y = self.merge(torch.cat(outputs, dim=2))
        return y, None if span.is_last else known.last(span.schedule.lengths[span.last - 1])

    @classmethod
    def visible(cls, settings: WindowSettings, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """See `Mixer.visible`: the squares in the own scale and in the coarser one."""
        found = np.zeros((schedule.num_tokens, schedule.num_tokens), np.bool_)
        for scale, side in enumerate(schedule.sides):
            queries = np.arange(schedule.offsets[scale], schedule.offsets[scale + 1])[:, None]
            for other in range(max(0, scale - 1), scale + 1):
                keys = schedule.offsets[other] + neighbours(side, schedule.sides[other], settings.k)
                found[queries, keys] = True
        return found

    @classmethod
    def score_cells(cls, config: ModelConfig, settings: WindowSettings, span: Span) -> int:
        """See `Mixer.score_cells`: n_k times the tokens of two squares."""
        squares = [min(settings.k, side) ** 2 for side in span.schedule.sides]
        return sum(span.schedule.lengths[k] * sum(squares[max(0, k - 1) : k + 1]) for k in span.scales)

    @classmethod
    def state_bytes(
        cls, config: ModelConfig, settings: WindowSettings, schedule: ScaleSchedule, element_bytes: int
    ) -> int:
        """See `Mixer.state_bytes`: keys and values of the scale before the last, the largest."""
        return 2 * sum(schedule.lengths[-2:-1]) * config.width * element_bytes
