"""The floors: marks to read a table by, of the tokenizer's own reconstructions, and real images against real ones."""

from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from mvar import layout
from mvar.config import RunConfig, identity
from mvar.data.rounds import Heed
from mvar.data.splits import Split, load_images
from mvar.evaluation.floors import floors, reconstruct, reconstructed
from mvar.runs.documents import read_or_warn, write_document
from mvar.runs.stages.contract import LockedStage, all_together
from mvar.runs.stages.extractor import ExtractorStage
from mvar.runs.stages.tokenizer import TokenizerStage
from mvar.runs.stages.vectors import VectorStage
from mvar.runs.states import Stopped
from mvar.training.distributed import Group


@dataclass(frozen=True)
class FloorStage(LockedStage):
    """Adds a record to `floors.json` in the extractor's directory: of each tokenizer and evaluation, by `floors_id`.

    Args:
        config: a run's; its data, tokenizer and evaluation are what the floors are of.
        tokenizer, extractor: what reconstructs and what judges.
        vectors: the training images that reconstructions are compared with.
    """

    name = "floors"
    config: RunConfig
    tokenizer: TokenizerStage
    extractor: ExtractorStage
    vectors: VectorStage

    def run(self) -> None:
        """Measure them where they are missing, or of another tokenizer of the same config."""
        self.extractor.run()  # where its weights were deleted; not under the lock, which it takes itself
        super().run()

    def is_done(self) -> bool:
        """Whether they are of the tokenizer's weights that are there now."""
        weights, record = self.tokenizer.weights_id(), self._found().get(self.config.floors_id)
        # one of an earlier version has no weights' id
        return bool(record) and weights.items() <= (weights | record).items()

    def make(self) -> None:
        """Measure them; nothing is kept of a part."""
        config = self.config
        weights, found = self.tokenizer.weights_id(), self._found()
        self.watch.check()
        extractor, tokenizer = self.extractor.load(), self.tokenizer.load()
        train, heldout = load_images(config.data, "train"), load_images(config.data, "heldout")
        heed, vectors = self.watch.heed(self.name), self.vectors.load()
        values = floors(tokenizer, train, heldout, extractor, config.evaluation, heed, vectors, self._together)
        made_from = {n: identity.as_document(getattr(config, n)) for n in ("data", "tokenizer", "evaluation")}
        made_from["evaluation"] = {n: v for n, v in made_from["evaluation"].items() if n not in identity.REFERENCE}
        record = {"tokenizer_id": config.tokenizer_id, **weights, "config": made_from, "metrics": values}
        write_document(self.directory.path / layout.FLOORS, {"floors": {**found, config.floors_id: record}})

    def take_part(self, split: Split) -> None:
        """Reconstruct another process's share of a split's images, for which the first one has called."""
        with suppress(Stopped), self._together(split) as (group, heed):
            images = reconstructed(load_images(self.config.data, split), split, self.config.evaluation)
            reconstruct(self.tokenizer.load(), images, group=group, heed=heed)

    def _together(self, split: str) -> AbstractContextManager[tuple[Group, Heed]]:
        """All processes of the job, which the first one calls."""
        call = {"floors": self.config.model_dump(mode="json"), "split": split}
        return all_together(self.config.runtime, self.watch, call)

    def _found(self) -> dict[str, Any]:
        return read_or_warn(self.directory.path / layout.FLOORS).get("floors", {})
