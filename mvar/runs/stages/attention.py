"""Attention of a finished run: on held-out images or on images that it draws itself."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.config import SampleConfig
from mvar.data.crops import ImageSet
from mvar.data.sources.contract import Split
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.evaluation.images import spread_indices
from mvar.evaluation.judge import Judge, judge_of, other_reference
from mvar.files import file_digest
from mvar.probes.attention_kept import kept, measure
from mvar.probes.attention_mass import AttentionStats
from mvar.probes.measurable import MAX_IMAGES, Batch, Measurable, Opened, drawn_images
from mvar.runs.at_hand import drawn_at_once
from mvar.runs.stages.contract import RunStage, retold
from mvar.runs.stages.extractor import ExtractorStage
from mvar.runs.stages.tokens import TokenStage
from mvar.runs.stages.train import TrainStage


@dataclass(frozen=True)
class AttentionStage(RunStage):
    """Writes `attention.json` and `attention_images.npy` of the held-out images, once, under a lock of their own.

    They rest on the weights: with others they are measured again.

    Args:
        directory: of the run.
        config: the run.
        train: the generator, and the tokenizer that it draws with.
        tokens: of the held-out images.
        extractor: what judges images that are drawn in a probe.
    """

    train: TrainStage
    tokens: TokenStage
    extractor: ExtractorStage
    name = "attention"

    def is_done(self) -> bool:
        """Whether they are there, of these weights."""
        return kept(self.heldout(), self.directory.path) is not None

    def make(self) -> None:
        """Measure; a killed call is gone on with by the next.

        Raises:
            UserError: as `load`.
        """
        self.load()

    def load(self) -> AttentionStats:
        """The statistics, measured where they are missing.

        Raises:
            UserError: no weights, no tokenizer or no tokens, or a model without global attention.
        """
        return measure(self.heldout(), self.directory.path, self.watch.report(self.name))

    def heldout(self, limit: int = MAX_IMAGES, batch_size: int = 0) -> Measurable:
        """At most `limit` held-out images of the run, evenly spread.

        Raises:
            UserError: a run without weights.
        """
        identity = self._identity("heldout", limit, batch_size)

        def open_run() -> Opened:
            with _named_if_missing():
                tokens, tokenizer = self.tokens.open("heldout"), self.train.load_tokenizer()
                model = self.train.generator
            chosen, device = spread_indices(len(tokens.tokens), limit), self.tokens.tokenizer.device

            def codes(numbers: Sequence[int]) -> Tensor:
                return _on(device, tokens.tokens, chosen[numbers])

            def batch(numbers: Sequence[int]) -> Batch:
                return _on(device, tokens.labels, chosen[numbers]), tokenizer.quantize.inputs(codes(numbers))

            sample = _plain(self.config.sample)
            return Opened(model, tokenizer, sample, len(chosen), batch, codes, self._images, self._judge)

        judged = (self.config.extractor_id, lambda: other_reference(self.config))
        return Measurable(identity, open_run, *judged, runtime=self.config.runtime)

    def drawn(self, num_images: int, batch_size: int = 0, sample: SampleConfig | None = None) -> Measurable:
        """The first images that the run draws, classes balanced, none rejected.

        Args:
            num_images: how many.
            batch_size: images at a time; 0: `runtime.sample_batch`.
            sample: settings of the drawing; None: the run's own.

        Raises:
            UserError: a run without weights.
        """
        settings = _plain(sample or self.config.sample)
        identity = self._identity("self", num_images, batch_size) | {"sample": settings.model_dump(mode="json")}

        def open_run() -> Opened:
            with _named_if_missing():
                model, tokenizer = self.train.generator_of(settings.ema), self.train.load_tokenizer()
            return drawn_images(model, tokenizer, num_images, settings)

        return Measurable(identity, open_run, runtime=self.config.runtime)

    def _images(self, split: Split) -> ImageSet:
        return load_images(self.config.data, split)

    def _judge(self) -> Judge:
        self.extractor.run()
        return judge_of(self.config, self.extractor.load())

    def _identity(self, source: str, limit: int, batch_size: int) -> dict[str, Any]:
        weights = self.directory.weights
        if not weights.is_file():
            raise UserError(f"{weights}: not there; allowed: a run that has finished training")
        size = batch_size or drawn_at_once(self.config)
        return {"source": source, "limit": limit, "batch_size": size, "weights_sha256": file_digest(weights)}


def _on(device: torch.device, values: Any, numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values[numbers], dtype=np.int64)).to(device)


def _plain(sample: SampleConfig) -> SampleConfig:
    """The settings without rejection: every image that is drawn counts."""
    return sample.model_copy(update={"candidates": 1})


def _named_if_missing() -> AbstractContextManager[None]:
    told = "not there; the command that made the run makes it again"
    return retold(FileNotFoundError, lambda error: f"{error.filename}: {told}")
