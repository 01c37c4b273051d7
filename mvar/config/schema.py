"""A whole run's configuration: its sections together, and the ids of the run and of the stages that it shares.

The run's id rests on what can change the trained weights: not on `RuntimeConfig`, nor on sampling and evaluation, which
one trained model can have several of. `mvar.config.identity` says how.
"""

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mvar.config import identity
from mvar.config.evaluation_sections import EvaluationConfig, SampleConfig
from mvar.config.extensible import Config
from mvar.config.model_section import ModelConfig
from mvar.config.sections import DataConfig, RuntimeConfig, TokenizerConfig, TokenSpace, TrainConfig
from mvar.files import digest
from mvar.registry import Registry

SCHEMA_VERSION = 1


class RunConfig(Config):
    """A run: everything from images to metrics."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="Of the stored document.")
    seed: int = Field(default=0, ge=0, description="Of the generator's initialisation and training.")
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig(base_lr=2.4e-2, warmup_fraction=0.1, clip_norm=1.0)
    sample: SampleConfig = SampleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        runtime = self.runtime
        for name, number in (("accumulate", runtime.accumulate), ("micro_batch", runtime.images_at_once)):
            if number and self.train.batch_size % number:
                raise ValueError(f"runtime.{name}: {number} does not divide train.batch_size {self.train.batch_size}")
        return self

    @model_validator(mode="after")
    def _check_ema(self) -> Self:
        if self.sample.ema and self.sample.ema not in self.train.ema:
            kept = ", ".join(map(str, (0, *self.train.ema)))
            why = "train.ema has no other" if self.train.ema else "this training keeps none: train.ema is empty"
            raise ValueError(f"sample.ema: {self.sample.ema} is not kept; allowed: {kept} ({why})")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        latent = self.tokenizer.patch_sides[-1] * self.tokenizer.downsample
        if latent != self.data.image_size:
            raise ValueError(
                f"data.image_size: {self.data.image_size} px does not fit the tokenizer, whose finest map "
                f"({self.tokenizer.patch_sides[-1]} tokens a side) times downsampling {self.tokenizer.downsample} "
                f"is {latent} px"
            )
        return self

    @property
    def is_planned(self) -> bool:
        """Whether how many GPUs it is given is planned: it leaves open how steps are made, or shares its weights."""
        return self.runtime.is_open or (self.runtime.strategy == "fsdp" and not self.train.ema)

    @property
    def token_space(self) -> TokenSpace:
        """The tokens that the generator models."""
        t = self.tokenizer
        return TokenSpace(t.patch_sides, t.vocab_size, t.code_channels, self.data.num_classes)

    def identity(self) -> dict[str, Any]:
        """What changes the trained weights, as plain JSON values."""
        return identity.science(identity.of_section(self))

    def canonical(self) -> dict[str, Any]:
        """All but how it is executed, by section, equal for every spelling of the same (`identity.canonical`)."""
        return identity.canonical(type(self), self.plain())

    def chosen(self) -> list[tuple[Registry[Any], str]]:
        """What the run uses by name, and of which kind it is: its data source, its mixers and so on."""
        sections = (self.data, self.model, self.sample, self.evaluation)
        return [found for section in sections for found in section.chosen()]

    @property
    def key(self) -> str:
        """One key for every spelling of the run, whatever its directory is called."""
        return identity.run_key(self.canonical())

    @property
    def run_id(self) -> str:
        """Readable slug and 8 hex digits of the identity's hash: one science, one directory."""
        pattern = re.sub(r"[^a-z0-9+]+", "_", self.model.resolved_pattern.replace("*", "x"))
        slug = f"{self.data.name}-d{self.model.depth}-w{self.model.width}-{pattern[:48]}-s{self.seed}"
        return f"{slug}-{digest(self.identity())}"

    @property
    def data_id(self) -> str:
        """Identity of images, split and preparation."""
        return digest(identity.of_section(self.data))

    @property
    def tokenizer_id(self) -> str:
        """Identity of the tokenizer stage: equal ids share one trained tokenizer."""
        sections = {"data": self.data, "tokenizer": self.tokenizer}
        hashed = {name: identity.of_section(section) for name, section in sections.items()}
        return digest({"schema_version": self.schema_version, **hashed})

    @property
    def cached_crops(self) -> int:
        """Random crops of a training image that the token cache holds; 0 where only held-out tokens are needed."""
        return self.train.crops if self.train.steps and self.train.tokens == "cache" else 0

    @property
    def tokens_id(self) -> str:
        """Identity of the token cache: data, tokenizer and number of crops."""
        return digest([self.tokenizer_id, self.cached_crops])

    @property
    def extractor_id(self) -> str:
        """Identity of the feature extractor: data, name, training and settings."""
        evaluation, own = identity.of_section(self.evaluation), self.evaluation.extractor  # the section of its settings
        made_by = {name: value for name, value in evaluation.items() if name in {*identity.EXTRACTOR, own}}
        return digest([identity.of_section(self.data), made_by])

    @property
    def evaluation_id(self) -> str:
        """Identity of one evaluation of the run: sampling settings, evaluator and reference data."""
        sections = {"sample": self.sample, "evaluation": self.evaluation}
        hashed = {name: identity.of_section(section) for name, section in sections.items()}
        return digest([{"schema_version": self.schema_version, **hashed}, self.extractor_id])

    @property
    def floors_id(self) -> str:
        """Identity of the floors: of the tokenizer and the settings of the evaluation, beside the extractor.

        Their reference is always the held-out images.
        """
        settings = {n: v for n, v in identity.of_section(self.evaluation).items() if n not in identity.REFERENCE}
        return digest([self.tokenizer_id, settings])
