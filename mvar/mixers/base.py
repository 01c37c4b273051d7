"""The mixer contract: all that the backbone, the cost model and the tests know of a sequence mixer.

Shapes: `B` batch, `L` tokens of a span, `D` width.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mvar.config import ModelConfig, RuntimeConfig
from mvar.pattern import parse_layer
from mvar.registries import MIXERS
from mvar.scales import ScaleSchedule, Span


class Mixer(nn.Module, ABC):
    """Mixes the tokens of a span of scales, given the state that the coarser scales left.

    `forward` with the whole image and no state is teacher forcing; with one scale and the state of the coarser ones
    it is a sampling step. Both are the same code and give the same result for every split of the scales.
    """

    key: ClassVar[str]  # the sub-layer's name in a block and in checkpoints, as in the official code
    # What a token sees: `scales`, all tokens of its own scale and the coarser ones; `scale`, those of its own scale;
    # `raster`, itself and all tokens before it.
    reach: ClassVar[Literal["scales", "scale", "raster"]]

    def __init__(self, config: ModelConfig, runtime: RuntimeConfig) -> None:
        super().__init__()
        self.config = config
        self.runtime = runtime

    @abstractmethod
    def forward(self, x: Tensor, span: Span, state: Any = None) -> tuple[Tensor, Any]:
        """Mix the tokens of `span`.

        Args:
            x: `(B, L, D)`, the tokens of the span.
            span: the scales that `x` holds.
            state: what `forward` returned for the scales before `span.first`; None when there are none.

        Returns:
            The mixed tokens `(B, L, D)`, and the state for the scales that follow (None if none is needed).
        """

    @abstractmethod
    def init_weights(self, std: float) -> None:
        """Initialise as the official code does.

        Args:
            std: standard deviation of the truncated normal, `sqrt(1 / (3 D))`.
        """

    @classmethod
    @abstractmethod
    def num_params(cls, config: ModelConfig) -> int:
        """Trainable parameters of one such mixer."""

    @classmethod
    @abstractmethod
    def flops(cls, config: ModelConfig, span: Span) -> int:
        """Forward FLOPs for one image, given the state of the coarser scales. A multiply-add counts 2."""

    @classmethod
    @abstractmethod
    def score_cells(cls, span: Span) -> int:
        """Query-key pairs that are computed for one image and head; 0 for a mixer without attention."""

    @classmethod
    @abstractmethod
    def state_bytes(cls, config: ModelConfig, schedule: ScaleSchedule, element_bytes: int) -> int:
        """Bytes of state that one image holds while its last scale is sampled."""


def mixer_class(name: str) -> type[Mixer]:
    """The class registered under a name; unknown names are a `UserError`."""
    (name,) = parse_layer(name)
    return MIXERS.find(name)
