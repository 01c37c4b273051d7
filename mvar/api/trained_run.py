"""A run of a results directory that has finished training."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mvar import layout
from mvar.api.trained import Trained
from mvar.config import RunConfig
from mvar.errors import UserError
from mvar.files import digest
from mvar.plugin_records import PlugInMissing
from mvar.probes.attention_mass import AttentionStats
from mvar.probes.knockout_kept import Knockout
from mvar.probes.measurable import MAX_IMAGES, Measurable, check_measured
from mvar.runs import gallery
from mvar.runs.published_tokenizer import need_tokenizer
from mvar.runs.stages.contract import retold
from mvar.runs.stages.reject import LabelScore
from mvar.runs.store import RunDirectory, Store
from mvar.runs.wiring import Stages, kept_knockout
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer


class TrainedRun(Trained):
    """A trained run, see `Trained`.

    Attributes:
        directory: of the run.
        store: the results directory that it lies in, with its tokenizer.
    """

    def __init__(self, store: Store, run: RunDirectory) -> None:
        if not run.weights.is_file():
            raise UserError(
                f"run: {run.name} is not trained yet ({run.state()}); allowed: a run with model.safetensors"
            )
        self.store, self.directory = store, run
        try:
            self.name, self.config = run.name, run.config()
        except PlugInMissing as error:
            raise UserError(error.in_python) from None

    @cached_property
    def class_names(self) -> list[str]:
        return gallery.class_names(self.directory)

    def python(self, here: bool = True) -> str:
        root = str(self.store.root)
        return f"mvar.load({self.name!r}" + (f", results={root!r})" if here and root != "results" else ")")

    @cached_property
    def stages(self) -> Stages:
        """What the run is made of: tokenizer, tokens, training, samples, evaluation."""
        return Stages(self.config, self.store, run=self.directory)

    @cached_property
    def model(self) -> ScaleTransformer:
        return self.stages.train.generator

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if not self.stages.tokenizer.weights.is_file():
            need_tokenizer(self.store, self.config, self.directory)
        return self.stages.train.load_tokenizer()

    def _drawer(self, config: RunConfig) -> ScaleTransformer:
        return self.stages.train.generator_of(config.sample.ema)

    def _score(self, config: RunConfig) -> LabelScore | None:
        return self._judge if config.sample.candidates > 1 else None

    @cached_property
    def _judge(self) -> LabelScore | None:
        """The classifier of the run's metrics; made where it is not there yet."""
        several = gallery.with_sampling(self.config, {"candidates": 2})
        stage = Stages(several, self.store, run=self.directory).reject
        stage.run()
        return stage.load()

    def _split(self, split: Literal["heldout", "train"]) -> tuple[Any, Any]:
        told = "not there; allowed: a split whose tokens the run has made"
        with retold(FileNotFoundError, lambda error: f"split: {split}: {error.filename} is {told}"):
            found = self.stages.tokens.open(split)
        return found.tokens, found.labels

    @property
    def kept_cuts(self) -> Knockout | None:
        return kept_knockout(self.store, self.directory)

    @property
    def heldout_labels(self) -> np.ndarray:
        return np.asarray(self._split("heldout")[1])

    def attention(
        self, source: Literal["heldout", "self"] = "heldout", images: int = 0, batch: int = 0, **options: Any
    ) -> AttentionStats:
        """How much attention stays inside a scale and goes to each coarser one; measured once, and kept.

        Examples:
            >>> import mvar
            >>> stats = mvar.load("digits").attention(images=8)
            >>> stats.mean.shape  # layers, heads, query scales, key scales
            torch.Size([2, 2, 4, 4])
            >>> 0 < stats.share < 1  # of the mass lies inside the own scale
            True

        Args:
            source: held-out images, or `self`: images that the model draws.
            images: at most so many; 0: 1000.
            batch: images at a time; 0: `runtime.sample_batch`.
            options: of source `self`, fields of `SampleConfig` that differ from the run's own.

        Raises:
            UserError: a model without global attention; no tokens; options of another source.
        """
        return self._kept_attention(source, images, batch, options)

    def measurable(
        self,
        source: str,
        images: int = 0,
        batch: int = 0,
        options: dict[str, Any] | None = None,
        kept_in: str = layout.ATTENTION,
    ) -> tuple[Measurable, Path]:
        """What `attention`, `knockout` or `probe` measures, and where it is kept: in the run, or in `kept_in`."""
        check_measured(source, images, batch)
        options, stage = options or {}, self.stages.attention
        if source == "self":
            sample = gallery.with_sampling(self.config, options).sample
            what = stage.drawn(images or MAX_IMAGES, batch, sample)
        elif name := next((name for name in ("images_from", "evaluation") if name in options), ""):
            raise UserError(f"{name}: a run has its own; allowed: of a checkpoint only")
        elif options:
            raise UserError(f"{next(iter(options))}: only for images that are drawn; allowed: with source self")
        else:
            what = stage.heldout(images or MAX_IMAGES, batch)
        if source == "heldout" and not batch and images in (0, MAX_IMAGES):
            return what, self.directory.path
        return what, self.store.root / kept_in / f"{self.name}-{source}-{digest(what.identity)}"
