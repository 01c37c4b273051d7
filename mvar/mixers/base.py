"""The mixer contract: all that the backbone, the cost model and the tests know of a sequence mixer.

Shapes: `B` batch, `L` tokens of a span, `D` width.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvar.config import Config, ModelConfig, RuntimeConfig
from mvar.kernels.attention import Severed
from mvar.pattern import mixer_name, parse_layer
from mvar.registries import MIXERS
from mvar.scales import ScaleSchedule, Span


class Mixer(nn.Module, ABC):
    """Mixes the tokens of a span of scales, given the state that the coarser scales left.

    `forward` with the whole image and no state is teacher forcing; with one scale and the state of the coarser ones
    it is a sampling step. Both are the same code and give the same result for every split of the scales.
    """

    key: ClassVar[str]  # the sub-layer's name in a block and in checkpoints, as in the official code
    # Its own settings, a section of a config, whose first field may stand in a pattern without its name: `markov:2`.
    Settings: ClassVar[type[Config] | None] = None
    examples: ClassVar[tuple[str, ...]] = ()  # settings as in a pattern, `"2"`, that are checked beside the defaults
    # What of it can be cut in a trained model, of `mvar.mixers.cutting.PARTS`: "keys", "state". Its output always can.
    cuts: ClassVar[tuple[str, ...]] = ()
    severed: Severed | None = None  # pairs that its attention does without now: with "keys" in `cuts` it heeds them

    def __init__(self, config: ModelConfig, settings: Any, runtime: RuntimeConfig) -> None:
        super().__init__()
        self.config = config
        self.settings = settings  # of the class `Settings`; None without one
        self.runtime = runtime

    @abstractmethod
    def forward(self, x: Tensor, span: Span, state: Any = None) -> tuple[Tensor, Any]:
        """Mix the tokens of `span`.

        Args:
            x: `(B, L, D)`, the tokens of the span.
            span: the scales that `x` holds.
            state: what `forward` returned for the scales before `span.first`, which stays as it is; None when there are
                none (or what `prepared` gave).

        Returns:
            The mixed tokens `(B, L, D)`, and the state for the scales that follow (None if none is needed).
        """

    def prepared(self, batch: int, schedule: ScaleSchedule, dtype: torch.dtype, device: torch.device) -> Any:
        """A state before the first scale with memory for all of them, which `forward` is given and fills in place.

        None, the default: `forward` is given none, makes what it returns, and who samples copies that to one place
        (`mvar.mixers.room`). Worth it for a state that grows by what each scale adds.

        Args:
            batch: images, the half without a class included.
            schedule: the scales.
            dtype: of the activations.
            device: of the tokens.
        """
        return None

    @abstractmethod
    def init_weights(self, std: float) -> None:
        """Initialise as the official code does, from torch's global random numbers.

        Args:
            std: standard deviation of the truncated normal, `sqrt(1 / (3 D))`.
        """

    @classmethod
    @abstractmethod
    def visible(cls, settings: Any, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """Which tokens a token sees: `(L, L)`, row i the tokens whose input the output of token i depends on.

        Those of finer scales never: an image is drawn coarse to fine.
        """

    @classmethod
    @abstractmethod
    def num_params(cls, config: ModelConfig, settings: Any) -> int:
        """Trainable parameters of one such mixer."""

    @classmethod
    @abstractmethod
    def flops(cls, config: ModelConfig, settings: Any, span: Span) -> int:
        """Forward FLOPs for one image, given the state of the coarser scales. A multiply-add counts 2.

        Of matrix products and convolutions; norms, activations and softmax are left out.
        """

    @classmethod
    @abstractmethod
    def score_cells(cls, config: ModelConfig, settings: Any, span: Span) -> int:
        """Query-key pairs that are computed for one image and head; 0 for a mixer without attention."""

    @classmethod
    @abstractmethod
    def state_bytes(cls, config: ModelConfig, settings: Any, schedule: ScaleSchedule, element_bytes: int) -> int:
        """Bytes of state that one image holds at its peak, over all steps of sampling."""


def mixer_class(name: str) -> type[Mixer]:
    """The class registered under a name; unknown names are a `UserError`."""
    return MIXERS.find(name)


def inter_scale_mixers() -> list[str]:
    """Names of all mixers, those of plug-ins included, through which a token sees coarser scales."""
    schedule = ScaleSchedule((1, 2))
    chosen = {name: Chosen.of(ModelConfig(), name) for name in MIXERS.names()}
    return [name for name, (cls, settings) in chosen.items() if cls.visible(settings, schedule)[1:, 0].any()]


class Chosen(NamedTuple):
    """A mixer as a layer's text names it."""

    cls: type[Mixer]
    settings: Any

    @classmethod
    def of(cls, config: ModelConfig, text: str) -> "Chosen":
        """What `markov:2` stands for in a model.

        Raises:
            UserError: an unknown mixer, or settings that it does not take.
        """
        return cls(mixer_class(mixer_name(text)), config.settings_of(text))

    def build(self, config: ModelConfig, runtime: RuntimeConfig) -> Mixer:
        """The module."""
        return self.cls(config, self.settings, runtime)


def chosen_in(config: ModelConfig, layer: str) -> dict[str, Chosen]:
    """The mixers of a layer such as `intra+markov:2`, in order, by their texts."""
    return {text: Chosen.of(config, text) for text in parse_layer(layer)}
