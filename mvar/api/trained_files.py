"""A generator's checkpoint and its tokenizer: VAR's, M-VAR's, or what `mvar export` writes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mvar import layout
from mvar.api.trained import Trained
from mvar.checkpoints import published
from mvar.checkpoints.checkpoint_files import with_choice
from mvar.checkpoints.imported import imported_config
from mvar.config import RunConfig, override
from mvar.errors import UserError
from mvar.files import digest
from mvar.presets import PRESETS
from mvar.probes.attention_mass import AttentionStats
from mvar.probes.checkpoint_pair import CheckpointPair, drawn_by_checkpoint, images_for_checkpoint
from mvar.probes.measurable import Measurable, check_measured
from mvar.runs import gallery
from mvar.runs.published_tokenizer import published_tokenizer
from mvar.runs.stages.reject import LabelScore
from mvar.tokenizer.model import Tokenizer
from mvar.training.distributed import resolve_device
from mvar.transformer import ScaleTransformer

CHECKPOINT_IMAGES = 64  # that attention is measured on, unless said otherwise
BASE = "imagenet256-d16"  # the preset that tells what no file tells: how images are drawn


class TrainedFiles(Trained):
    """A checkpoint and its tokenizer, see `Trained`."""

    def __init__(
        self,
        checkpoint: str,
        tokenizer: str,
        results: Path,
        *,
        patch_sides: Sequence[int] | None = None,
        num_heads: int | None = None,
        weights: str = "",
    ) -> None:
        self._num_heads = num_heads
        sides = tuple(patch_sides) if patch_sides else None
        self._pair = CheckpointPair(Path(with_choice(checkpoint, weights)), Path(tokenizer), sides, num_heads)
        self._results = results
        self.name = Path(checkpoint).stem
        self.config, self.facts = imported_config(
            PRESETS[BASE],
            checkpoint,
            tokenizer,
            patch_sides=sides,
            num_heads=num_heads,
            weights=weights,
            adapt_data=True,
        )

    @property
    def class_names(self) -> list[str]:
        return [str(number) for number in range(self.config.data.num_classes)]

    def python(self, here: bool = True) -> str:
        pair = self._pair
        files = (str(file) if here else Path(file).name for file in (pair.checkpoint, pair.tokenizer))
        told = {"patch_sides": pair.patch_sides, "num_heads": pair.num_heads}
        more = "".join(f", {name}={value!r}" for name, value in told.items() if value)
        return f"mvar.load({', '.join(map(repr, files))}{more})"

    @cached_property
    def model(self) -> ScaleTransformer:
        config = self.config
        checkpoint, sides = config.train.init_from, config.tokenizer.patch_sides
        assert checkpoint  # `imported_config` names it
        heads, runtime = self._num_heads, config.runtime
        model, _ = published.load_generator(checkpoint, patch_sides=sides, num_heads=heads, runtime=runtime)
        return model.to(resolve_device(runtime)).eval()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        config = self.config
        return published_tokenizer(config.tokenizer, config.data.channels).to(resolve_device(config.runtime))

    def _judged(self, options: dict[str, Any], fid: bool = False) -> RunConfig:
        given = options.setdefault("evaluation", {}) if fid else options.get("evaluation", {})
        return override(self.config, {f"evaluation.{name}": value for name, value in given.items()})

    def _score(self, config: RunConfig) -> LabelScore | None:
        if config.sample.candidates > 1:
            raise UserError("sample.candidates: needs a classifier; allowed: 1 for a checkpoint, more for a run")
        return None

    def _split(self, split: Literal["heldout", "train"]) -> tuple[Any, Any]:
        raise UserError(f"{split} images: a checkpoint has none; allowed: images of your own, or drawn=CLASS of a map")

    @property
    def heldout_labels(self) -> np.ndarray:
        return np.zeros(0, np.int64)

    def attention(
        self, source: Literal["heldout", "self"] = "heldout", images: int = 0, batch: int = 0, **options: Any
    ) -> AttentionStats:
        """How much attention stays inside a scale and goes to each coarser one; measured once, and kept.

        Args:
            source: images of a folder, or `self`: images that the model draws.
            images: at most so many; 0: 64.
            batch: images at a time; 0: 8.
            options: `images_from`, a folder with a subfolder for each class; of source `self`, fields of
                `SampleConfig` that differ from the published ones (cfg 1.5, top-k 900, top-p 0.96).

        Raises:
            UserError: a model without global attention; no folder, or one for another source.
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
        options, count = dict(options or {}), images or CHECKPOINT_IMAGES
        judged = self._judged(options) if "evaluation" in options else None
        folder, _ = options.pop("images_from", ""), options.pop("evaluation", None)
        if bool(folder) != (source == "heldout"):
            needs = "needs" if source == "heldout" else "does without"
            raise UserError(
                f"images-from: {str(folder)!r}; source {source} of a checkpoint {needs} it; allowed: a folder of class "
                "subfolders with source heldout, none with source self"
            )
        pair = replace(self._pair, for_attention=kept_in == layout.ATTENTION)
        if source == "self":
            sample = gallery.with_sampling(self.config, options).sample
            what = drawn_by_checkpoint(pair, count, batch, sample)
        else:
            what = images_for_checkpoint(pair, Path(folder), count, batch, judged)
        return what, self._results / kept_in / f"{self.name}-{source}-{digest(what.identity)}"
