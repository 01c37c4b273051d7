"""The tokenizer: trained on the data, or taken from the published checkpoint that the config names. Runs share it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvar import layout
from mvar.artefacts import complain_of
from mvar.checkpoints.weights import load_weights, save_weights
from mvar.config import Config, DataConfig, EvaluationConfig, RuntimeConfig, TokenizerConfig, identity
from mvar.data.rounds import Heed
from mvar.data.splits import load_images
from mvar.evaluation.fidelity import check_reference
from mvar.evaluation.floors import psnr, reconstruct
from mvar.evaluation.images import Images
from mvar.files import known_digest
from mvar.runs.documents import write_document
from mvar.runs.published_tokenizer import check_source, published_tokenizer, source_digest
from mvar.runs.stages.contract import SharedStage, all_together, way_out
from mvar.runs.states import DONE, Stopped
from mvar.tokenizer.model import Tokenizer
from mvar.training.distributed import Group, resolve_device
from mvar.training.loop import fit
from mvar.training.tokenizer import TokenizerObjective


@dataclass(frozen=True)
class TokenizerStage(SharedStage):
    """Writes `tokenizer.safetensors` and `quality.json`; of a published one also `source.json`.

    Args:
        data: what it is trained on.
        settings: of the tokenizer.
        evaluation: of the runs; a held-out split that is too small for it is refused before anything is trained.
        runtime: how it is trained.
    """

    data: DataConfig
    settings: TokenizerConfig
    evaluation: EvaluationConfig
    runtime: RuntimeConfig
    name = "tokenizer"

    @property
    def origin(self) -> Mapping[str, Config]:
        """Data and tokenizer."""
        return {"data": self.data, "tokenizer": self.settings}

    @property
    def weights(self) -> Path:
        """Of the finished tokenizer."""
        return self.directory.path / layout.TOKENIZER

    @property
    def device(self) -> torch.device:
        """Where models live."""
        return torch.device(resolve_device(self.runtime))

    def is_done(self) -> bool:
        """Whether it is trained and its weights are there."""
        return self.directory.state() == DONE and self.weights.is_file()

    def run(self) -> None:
        """Make it where it is missing.

        Raises:
            UserError: behind the path of the published checkpoint there is another file than it was made of.
        """
        if self.directory.state() == DONE:
            check_source(self.settings, self.directory)  # also where its weights were deleted
        super().run()

    def check(self) -> None:
        """Refuse a held-out split that no metric can be computed against."""
        check_reference(load_images(self.data, "heldout"), self.evaluation)

    def build(self) -> Mapping[str, float]:
        """Train it, or load the published one; measure it on held-out images."""
        if self.settings.checkpoint:
            tokenizer, train_s = published_tokenizer(self.settings, self.data.channels), 0.0
            sha256 = source_digest(self.settings, self.directory)
            write_document(self.directory.path / layout.SOURCE, {"sha256": sha256})
        else:
            tokenizer, train_s = self._train()
        save_weights(self.weights, tokenizer, {"tokenizer": identity.as_document(self.settings)})
        self._write_quality(tokenizer)
        return {"train_s": train_s}

    def _train(self) -> tuple[Tokenizer, float]:
        settings = self.settings
        torch.manual_seed(settings.seed)
        tokenizer = Tokenizer(settings, self.data.channels)
        objective = TokenizerObjective(tokenizer, load_images(self.data, "train"), settings)
        result = fit(
            objective,
            settings.train,
            self.directory.path,
            self.runtime.for_batch(settings.train.batch_size),
            seed=settings.seed,
            progress=self.watch.report(self.name),
            should_stop=self.watch.should_stop,
        )
        if not result.finished:
            raise Stopped(f"tokenizer: step {result.step} of {settings.train.steps}")
        return tokenizer, result.train_s

    # Outputs ----------------------------------------------------------------------------------------------------------

    def load(self) -> Tokenizer:
        """The finished tokenizer, on the device, in evaluation mode; one whose weights were deleted is made again."""
        if not self.weights.is_file() and self.directory.state() == DONE:
            self.run()
        with way_out():
            state, _ = load_weights(self.weights)
        tokenizer = Tokenizer(self.settings, self.data.channels)
        tokenizer.load_state_dict(state)
        return tokenizer.to(self.device).eval()

    def weights_id(self) -> dict[str, str]:
        """What tells the tokenizer that is there now from another one of the same config.

        Raises:
            UserError: damaged weights.
        """
        sha256 = known_digest(self.weights)
        with way_out():
            complain_of(self.weights, sha256)
        return {"tokenizer_sha256": sha256}

    def restore_quality(self) -> None:
        """Measure a finished tokenizer again, where its `quality.json` is gone."""
        if not self._quality.is_file():
            self._write_quality(self.load())

    @property
    def _quality(self) -> Path:
        return self.directory.path / layout.QUALITY

    def _write_quality(self, tokenizer: Tokenizer) -> None:
        write_document(self._quality, self._measured(tokenizer))

    def _measured(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The PSNR of held-out images and the codes that they use."""
        heldout = self._heldout()
        # without a report: the training's steps stay in sight
        with self._together() as (group, heed):
            shown, usage = reconstruct(tokenizer.to(self.device), heldout, group=group, heed=heed)
        return {
            "psnr_db": psnr(shown, heldout, lambda done, total: self.watch.check()),
            "codes_used": int((usage.sum(0) > 0).sum()),
            "vocab_size": self.settings.vocab_size,
        }

    def take_part(self) -> None:
        """Reconstruct another process's share of the held-out images, which the first one measures."""
        with suppress(Stopped), self._together() as (group, heed):
            reconstruct(self.load(), self._heldout(), group=group, heed=heed)

    def _heldout(self) -> Images:
        return Images(load_images(self.data, "heldout"), "held-out images")

    def _together(self) -> AbstractContextManager[tuple[Group, Heed]]:
        """All processes of the job, which the first one calls."""
        sections = {"data": self.data, "tokenizer": self.settings, "runtime": self.runtime.for_batch(1)}
        call = {name: section.model_dump(mode="json") for name, section in sections.items()}
        return all_together(self.runtime, self.watch, {"quality": call})
