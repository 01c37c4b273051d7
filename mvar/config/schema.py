"""The sections of a run's configuration: frozen, validated, JSON in and out.

A run is a `RunConfig`. Its id rests on what can change the trained weights: not on `RuntimeConfig`, nor on sampling
and evaluation, which one trained model can have several of. `mvar.config.identity` says how.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mvar.config import identity, sources
from mvar.files import digest, expand
from mvar.pattern import parse_pattern, replace_layers
from mvar.scales import ScaleSchedule

SCHEMA_VERSION = 1
IS_SPLITS = 10  # of the samples, for the inception score


class Config(BaseModel):
    """Base of every section: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class DataConfig(Config):
    """Images and how they are split and cropped."""

    name: str = "digits"  # a name in mvar.config.sources
    root: str | None = None  # imagefolder: class subfolders of the training images; $VARIABLES are expanded
    heldout_root: str | None = None  # imagefolder: a separate held-out set with the same classes, e.g. ImageNet's val
    image_size: int = Field(8, ge=2)  # side in pixels
    channels: Literal[1, 3] = 1
    num_classes: int = Field(10, ge=2)  # checked against the data
    heldout_fraction: float = Field(1 / 6, gt=0, lt=1)  # of each class, where there is no heldout_root
    split_seed: int = Field(0, ge=0)
    resize_factor: float = Field(1.125, ge=1)  # shorter side before cropping, relative to image_size (VAR: 1.125)
    hflip: bool = False  # VAR trains without
    class_order: Literal["name", "number"] = "name"  # of the labels: as text, or 2 before 10
    # How folders are read, see mvar.data.folders and pictures. 1: as by the first version. What launches runs sets 2
    # where the two differ, so that sound data keep their ids.
    reading: Literal[1, 2] = 1

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return sources.check_name(name)

    @model_validator(mode="after")
    def _check_root(self) -> Self:
        if self.name == "imagefolder" and not self.root:
            raise ValueError(
                "data.root: not set; allowed: the folder of class subfolders that data.name=imagefolder needs"
            )
        return self

    def path(self, root: str) -> str:
        """A root with `~` and environment variables expanded: the config, and so the run's id, names no machine."""
        return str(expand(root))


class OptimConfig(Config):
    """One optimisation run; the fields of both objectives. Defaults are VAR's."""

    steps: int = Field(600, ge=0)  # optimizer steps
    batch_size: int = Field(32, ge=1)  # images a step, over all processes and micro-batches
    accumulate: int = Field(1, ge=1)  # only in ids of the first version; what splits a batch is runtime.accumulate
    base_lr: float = Field(1e-4, gt=0)  # learning rate = base_lr * batch_size / 256
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    weight_decay_end: float | None = Field(None, ge=0)  # cosine to this value; None: constant
    schedule: str = Field("lin0", pattern=r"^(lin0|lin|lin00|cos|exp|lin0\.\d+)$")  # VAR's names
    warmup_fraction: float = Field(0.02, ge=0, lt=1)  # of the steps (VAR: epochs / 50)
    warmup_start: float = Field(0.005, ge=0, le=1)  # learning rate at step 0, relative to the peak
    end_ratio: float = Field(0.01, ge=0, le=1)  # learning rate at the last step, relative to the peak
    clip_norm: float = Field(2.0, gt=0)  # global gradient norm
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_validator(mode="after")
    def _check_split(self, info: ValidationInfo) -> Self:
        if self.accumulate != 1 and not (info.context or {}).get("stored"):
            raise ValueError(f"accumulate: {self.accumulate} has moved; allowed: runtime.accumulate={self.accumulate}")
        return self

    @property
    def peak_lr(self) -> float:
        """Learning rate after warm-up."""
        return self.base_lr * self.batch_size / 256


class TokenizerConfig(Config):
    """The multi-scale residual VQ-VAE. Defaults: the digits demo; `presets` has VAR's released one."""

    patch_sides: tuple[int, ...] = (1, 2, 3, 4)
    vocab_size: int = Field(96, ge=2)  # V
    code_channels: int = Field(8, ge=1)  # C
    width: int = Field(24, ge=1)  # channels of the first stage
    # one a stage; each stage after the first halves the resolution
    channel_multipliers: tuple[PositiveInt, ...] = Field((1, 2), min_length=1)
    num_res_blocks: int = Field(1, ge=1)
    attention: bool = False  # self-attention in the coarsest stage
    mid_attention: bool = False
    share_phi: int = Field(4, ge=0)  # phi convolutions: 0 one per scale, 1 one, K shared (VAR: 4)
    phi_ratio: float = Field(0.5, ge=0, le=1)  # weight of the convolution in phi
    beta: float = Field(0.1, ge=0)  # commitment loss
    checkpoint: str | None = None  # a published tokenizer's file: it is loaded, not trained
    shift_px: int = Field(1, ge=0)  # random translation of training images
    seed: int = Field(0, ge=0)
    train: OptimConfig = OptimConfig(steps=600, batch_size=64, base_lr=1.6e-2, warmup_fraction=0.3, clip_norm=1.0)

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        _ = self.schedule
        if not self.train.steps:
            raise ValueError("tokenizer.train.steps: 0; allowed: 1 or more")
        return self

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales that it writes an image in."""
        return ScaleSchedule(self.patch_sides)

    @property
    def downsample(self) -> int:
        """Pixels a side of the finest token."""
        return 2 ** (len(self.channel_multipliers) - 1)


class MambaConfig(Config):
    """Mamba-2's sizes; the defaults are M-VAR's."""

    d_state: int = Field(64, ge=1)  # N
    d_conv: int = Field(4, ge=2)
    expand: int = Field(2, ge=1)
    headdim: int = Field(64, ge=1)  # P


class ModelConfig(Config):
    """The generator: a VAR backbone whose layers hold the mixers of `pattern`.

    `replace` and `replacement` derive the pattern from a base (M-VAR's Figure 5) and are folded into it, so that two
    spellings of one model are one config.
    """

    depth: int = Field(8, ge=1)
    width: int = Field(64, ge=1)  # D
    num_heads: int = Field(4, ge=1)  # H
    pattern: str = "global"
    mlp_ratio: float = Field(4.0, gt=0)
    attn_l2_norm: bool = True
    shared_adaln: bool = False
    drop_path: float = Field(0.0, ge=0, lt=1)  # at the last layer, linear from 0 (VAR: 0.1 * depth / 24)
    init: Literal["official", "fixed"] = "official"  # fixed: every gate of a layer gets init_adaln_gamma
    init_adaln: float = 0.5
    init_adaln_gamma: float = 1e-3
    init_head: float = 0.02
    mamba: MambaConfig = MambaConfig()

    @model_validator(mode="before")
    @classmethod
    def _canonical_pattern(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        rule, replacement = values.pop("replace", "none"), values.pop("replacement", "intra+mamba")
        depth = values.get("depth", cls.model_fields["depth"].default)
        with suppress(ValidationError):  # 8.0 and "8" are whole numbers to the field itself
            depth = TypeAdapter(int).validate_python(depth)
        if isinstance(depth, int) and depth >= 1:  # otherwise depth's own check speaks
            base = values.get("pattern", cls.model_fields["pattern"].default)
            values["pattern"] = replace_layers(str(base), str(rule), str(replacement), depth)
        return values

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"model.num_heads: {self.num_heads} does not divide model.width {self.width}")
        if "mamba" in self.pattern and (self.width * self.mamba.expand) % self.mamba.headdim:
            raise ValueError(
                f"model.mamba.headdim: {self.mamba.headdim} does not divide expand * width = "
                f"{self.width * self.mamba.expand}"
            )
        return self

    @property
    def layers(self) -> tuple[str, ...]:
        """The pattern, one entry a layer."""
        return parse_pattern(self.pattern, self.depth)


class TrainConfig(OptimConfig):
    """Training of the generator."""

    label_dropout: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    crops: int = Field(1, ge=1)  # token cache: random crops an image
    # A generator's checkpoint to start from: layers with the same mixers are taken over; with steps=0 that is the run.
    init_from: str | None = None

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if not self.steps and not self.init_from:
            raise ValueError("train.steps: 0; allowed: 1 or more, 0 only with train.init_from")
        return self


class SampleConfig(Config):
    """How images are drawn. `seed` numbers the set: image i of it has its own stream of random numbers."""

    cfg_scale: float = Field(1.5, ge=0)  # guidance t = cfg_scale * s / (S - 1) at scale s
    top_k: int = Field(0, ge=0)  # 0: off
    top_p: float = Field(0.95, ge=0, le=1)  # 0: off
    more_smooth: bool = False  # Gumbel-softmax mixing of codes; for pictures, never for FID
    candidates: int = Field(1, ge=1)  # rejection sampling: of so many images a classifier's favourite is kept
    seed: int = Field(0, ge=0)

    @property
    def acceptance_rate(self) -> float:
        """Share of the drawn images that is kept."""
        return 1 / self.candidates


class EvaluationConfig(Config):
    """What is measured on samples, and against what."""

    num_images: int = Field(1800, ge=1)  # at least `least_images`
    extractor: Literal["classifier", "inception"] = "classifier"
    inception_weights: str | None = None  # torch-fidelity's Inception file, for extractor=inception
    classifier_steps: int = Field(250, ge=1)
    classifier_seed: int = Field(0, ge=0)
    kid_subset_size: int = Field(500, ge=2)
    prc_neighborhood: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if self.num_images < self.least_images:
            raise ValueError(
                f"evaluation.num_images: {self.num_images} is too few; allowed: {self.least_images} or more (the "
                f"inception score is of {IS_SPLITS} splits, precision and recall of prc_neighborhood + 1 images)"
            )
        return self

    @property
    def least_images(self) -> int:
        """Samples that the metrics need."""
        return max(IS_SPLITS, self.prc_neighborhood + 1)


class RuntimeConfig(Config):
    """What may differ between two executions of one run: never part of its identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0)  # of torch; 0: torch's own choice
    num_workers: int = Field(0, ge=0)  # of data loading
    accumulate: int = Field(1, ge=1)  # micro-batches that each process splits its part of a step's batch into
    log_every: int = Field(10, ge=1)  # steps
    checkpoint_every: int = Field(200, ge=1)  # steps
    keep_checkpoints: int = Field(2, ge=1)
    sample_batch: int = Field(100, ge=1)
    tensorboard: bool = False
    attention_backend: Literal["auto", "torch", "flash_attn"] = "auto"
    scan_backend: Literal["auto", "torch", "mamba_ssm"] = "auto"

    def for_batch(self, batch_size: int) -> Self:
        """For a shared stage, whose batch is its own: split in as many parts as divide it."""
        return self.model_copy(update={"accumulate": gcd(self.accumulate, batch_size)})


@dataclass(frozen=True)
class TokenSpace:
    """What the generator must know of its tokenizer and data: the interface between the two."""

    patch_sides: tuple[int, ...]
    vocab_size: int  # V
    code_channels: int  # C
    num_classes: int

    @property
    def schedule(self) -> ScaleSchedule:
        """The scale schedule of the token maps."""
        return ScaleSchedule(self.patch_sides)


class RunConfig(Config):
    """A run: everything from images to metrics."""

    schema_version: Literal[1] = SCHEMA_VERSION
    seed: int = Field(0, ge=0)  # of the generator's initialisation and training
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig(base_lr=2.4e-2, warmup_fraction=0.1, clip_norm=1.0)
    sample: SampleConfig = SampleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        if self.train.batch_size % self.runtime.accumulate:
            raise ValueError(
                f"runtime.accumulate: {self.runtime.accumulate} does not divide train.batch_size "
                f"{self.train.batch_size}"
            )
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
    def token_space(self) -> TokenSpace:
        """The tokens that the generator models."""
        t = self.tokenizer
        return TokenSpace(t.patch_sides, t.vocab_size, t.code_channels, self.data.num_classes)

    def identity(self) -> dict[str, Any]:
        """What changes the trained weights, as plain JSON values."""
        return identity.science(identity.of_section(self))

    def canonical(self) -> dict[str, Any]:
        """All but how it is executed, by section, equal for every spelling of the same (`identity.canonical`)."""
        return identity.canonical(type(self), self.model_dump(mode="json"))

    @property
    def key(self) -> str:
        """One key for every spelling of the run, whatever its directory is called."""
        return identity.run_key(self.canonical())

    @property
    def run_id(self) -> str:
        """Readable slug and 8 hex digits of the identity's hash: one science, one directory."""
        pattern = re.sub(r"[^a-z0-9+]+", "_", self.model.pattern.replace("*", "x"))
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
    def tokens_id(self) -> str:
        """Identity of the token cache: data, tokenizer and number of crops; 0 where only held-out tokens are needed."""
        return digest([self.tokenizer_id, self.train.crops if self.train.steps else 0])

    @property
    def extractor_id(self) -> str:
        """Identity of the feature extractor: for the classifier its data and training, else the named network."""
        evaluation = identity.of_section(self.evaluation)
        made_by = {name: value for name, value in evaluation.items() if name in identity.EXTRACTOR}
        return digest([identity.of_section(self.data), made_by])

    @property
    def evaluation_id(self) -> str:
        """Identity of one evaluation of the run: sampling settings, evaluator and reference data."""
        sections = {"sample": self.sample, "evaluation": self.evaluation}
        hashed = {name: identity.of_section(section) for name, section in sections.items()}
        return digest([{"schema_version": self.schema_version, **hashed}, self.extractor_id])

    @property
    def floors_id(self) -> str:
        """Identity of the floors: of the tokenizer and the settings of the evaluation, beside the extractor."""
        return digest([self.tokenizer_id, identity.of_section(self.evaluation)])
