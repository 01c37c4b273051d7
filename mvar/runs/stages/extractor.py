"""The feature extractor, what images are judged with: a classifier that is trained, or the network that is named."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from mvar import layout
from mvar.config import Config, RunConfig
from mvar.evaluation.classifier import load_extractor, train_classifier
from mvar.evaluation.extractor import Extractor
from mvar.runs.documents import write_document
from mvar.runs.stages.contract import SharedStage, way_out
from mvar.runs.states import DONE, Stopped


@dataclass(frozen=True)
class ExtractorStage(SharedStage):
    """Writes `extractor.json` and, of a classifier, its weights. Runs share it.

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
        """Whether it was seen to load, and a classifier's weights are there."""
        return self.directory.state() == DONE and not self._lacks_weights()

    def build(self) -> Mapping[str, float]:
        """Train the classifier, or check that the named network loads."""
        if self._is_trained:
            report, heed = self.watch.report(self.name), self.watch.heed(self.name)
            if not train_classifier(self.config, self.directory.path, report, self.watch.should_stop, heed):
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
        return self.config.evaluation.extractor == "classifier"

    def _lacks_weights(self) -> bool:
        return self._is_trained and not (self.directory.path / layout.CLASSIFIER).is_file()

    def _open(self) -> Extractor:
        with way_out() if self._is_trained else nullcontext():
            return load_extractor(self.config, self.directory.path)

    def _describe(self, extractor: Extractor) -> None:
        values = {"id": extractor.id, "heldout_accuracy": extractor.heldout_accuracy}
        write_document(self.directory.path / layout.EXTRACTOR, values)
