"""The feature extractor, what images are judged with: trained here, or a network that is given."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

from mvar import layout
from mvar.config import Config, RunConfig
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.extractors.contract import ExtractorKind, kind_of
from mvar.runs.documents import write_document
from mvar.runs.stages.contract import SharedStage, way_out
from mvar.runs.states import DONE, Stopped


@dataclass(frozen=True)
class ExtractorStage(SharedStage):
    """Writes `extractor.json` and, of one that is trained, its weights. Runs share it.

    Args:
        config: a run's; which extractor, and its id.
    """

    config: RunConfig
    name = "extractor"

    @property
    def origin(self) -> Mapping[str, Config]:
        """Data and evaluation."""
        return {"data": self.config.data, "evaluation": self.config.evaluation}

    def is_done(self) -> bool:
        """Whether it was seen to load, and what it has learned is there."""
        return self.directory.state() == DONE and not self._lacks_weights()

    def build(self) -> Mapping[str, float]:
        """Train it, or check that the given network loads."""
        if self._is_trained:
            report, heed = self.watch.report(self.name), self.watch.heed(self.name)
            if not self._kind.train(self.directory.path, report, self.watch.should_stop, heed):
                raise Stopped("extractor: asked to stop")
        self._describe(self._open())
        return {}

    def load(self) -> Extractor:
        """The finished feature extractor; a classifier whose weights were deleted is made again."""
        if self._lacks_weights() and self.directory.state() == DONE:
            self.run()
        return self._open()

    def restore_description(self) -> None:
        """Say again what a finished extractor is, where its `extractor.json` is gone."""
        if not (self.directory.path / layout.EXTRACTOR).is_file():
            self._describe(self.load())

    @property
    def _is_trained(self) -> bool:
        return bool(self._kind.keeps)

    @cached_property
    def _kind(self) -> ExtractorKind:
        return kind_of(self.config)

    def _lacks_weights(self) -> bool:
        return self._is_trained and not (self.directory.path / self._kind.keeps).is_file()

    def _open(self) -> Extractor:
        with way_out() if self._is_trained else nullcontext():
            return self._kind.load(self.directory.path)

    def _describe(self, extractor: Extractor) -> None:
        values = {"id": extractor.id, "heldout_accuracy": extractor.heldout_accuracy}
        write_document(self.directory.path / layout.EXTRACTOR, values)
