"""What a feature extractor is: a name in `mvar.registries.EXTRACTORS`, a network, and what it makes of images."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from mvar.config import RunConfig
from mvar.evaluation.extractor import Extractor
from mvar.progress import Progress
from mvar.registries import EXTRACTORS
from mvar.training.distributed import resolve_device

SPATIAL_CHANNELS = 7  # of a map that ADM's sFID takes


def channels_last(found: Tensor) -> Tensor:
    """The first 7 channels of a map `(B, ch, h, w)`, flattened row by row, channels last: `(B, h * w * 7)`."""
    return found[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


class ExtractorKind(ABC):
    """How a feature extractor is had: given, or trained on the data and kept in a stage's directory.

    Its name is part of ids, and so are those of its `Settings` (section `evaluation.NAME`) that are not at their
    defaults; the id is `RunConfig.extractor_id`.

    Args:
        config: of a run: its data, and the settings of the evaluation.
    """

    knows_labels: ClassVar[bool] = False
    """Whether the logits are over the classes of the data set, in their order."""
    keeps: ClassVar[str] = ""
    """The file of its directory that holds what it has learned; empty: nothing is trained, the network is given."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    def settings(self) -> Any:
        """An instance of the class's `Settings`; None where it has none."""
        return self.config.evaluation.settings_of(self.config.evaluation.extractor)

    def check(self) -> None:
        """Refuse, before anything is computed, what cannot be loaded: a `UserError` for a missing file, say."""
        return

    def train(
        self,
        directory: Path,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        measured: Progress | None = None,
    ) -> bool:
        """Learn, resuming what a killed call has left, and write `keeps`; returns whether it is finished.

        Args:
            directory: of the stage.
            progress: called with steps done and in all.
            should_stop: asked at every step; once true, the state is saved.
            measured: called with held-out images done and in all; what it raises ends the work.
        """
        return True

    @abstractmethod
    def network(self, directory: Path) -> tuple[nn.Module, float | None]:
        """The network, and the share of held-out images that it classifies rightly, None where that does not apply.

        Args:
            directory: of the stage, with what `train` has written.

        Raises:
            UserError: weights that are missing, damaged, or of another extractor.
        """

    @abstractmethod
    def forward(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, F)` and logits `(B, K)` of images uint8 `(B, ch, H, W)`, on the network's device."""

    def forward_spatial(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and spatial features `(B, S)` for sFID; a kind that has such overrides this.

        ADM's are the first 7 channels of a map in the middle of Inception, flattened row by row, channels last.
        """
        raise NotImplementedError

    @classmethod
    def has_spatial(cls) -> bool:
        """Whether it has spatial features."""
        return cls.forward_spatial is not ExtractorKind.forward_spatial

    def load(self, directory: Path) -> Extractor:
        """The extractor, ready to use on `config.runtime`'s device; as `network`."""
        network, accuracy = self.network(directory)
        return self.of(network, accuracy)

    def of(self, network: nn.Module, accuracy: float | None = None) -> Extractor:
        """The extractor of a network that is there."""
        found = Extractor(
            network,
            self.forward,
            id=self.config.extractor_id,
            channels=self.config.data.channels,
            heldout_accuracy=accuracy,
            knows_labels=self.knows_labels,
            spatial=self.forward_spatial if self.has_spatial() else None,
        )
        return found.to(resolve_device(self.config.runtime))


def kind_of(config: RunConfig) -> ExtractorKind:
    """The extractor that a config names.

    Raises:
        UserError: there is none; lists those that there are.
    """
    return EXTRACTORS.find(config.evaluation.extractor)(config)
