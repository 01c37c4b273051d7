"""The sections of a run's configuration that make data, tokenizer and training; every field with its default, unit and
limits; frozen, JSON in and out. `model_section` and `evaluation_sections` have the others.
"""

from dataclasses import dataclass
from math import gcd
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, PositiveInt, ValidationInfo, model_validator

from mvar.config.extensible import Config, Extensible
from mvar.errors import quoted
from mvar.files import expand
from mvar.registries import SOURCES
from mvar.scales import ScaleSchedule


class DataConfig(Extensible):
    """Images and how they are split and cropped."""

    SECTION = "data"
    REGISTRIES = (SOURCES,)
    CHOICES = MappingProxyType({"name": SOURCES})

    name: str = Field(
        default="digits",
        description="Source of the images, a name in mvar.registries: scikit-learn's digits, one's own folders, ...",
    )
    root: str | None = Field(
        default=None,
        description="Where the images are, in the layout of the source: for imagefolder, a folder with a subfolder of "
        "training images a class; $VARIABLES and ~ are expanded.",
    )
    heldout_root: str | None = Field(
        default=None,
        description="A separate held-out set with the same classes, e.g. ImageNet's val; none: split.",
    )
    image_size: int = Field(default=8, ge=2, description="Side of an image in pixels, after cropping.")
    channels: Literal[1, 3] = Field(default=1, description="Of the images: 1 grey, 3 colour.")
    num_classes: int = Field(default=10, ge=2, description="Classes of the labels; checked against the data.")
    heldout_fraction: float = Field(
        default=1 / 6, gt=0, lt=1, description="Share of each class that is held out, where no set of its own is."
    )
    split_seed: int = Field(default=0, ge=0, description="Seed of the choice of held-out images.")
    resize_factor: float = Field(
        default=1.125, ge=1, description="Shorter side before cropping, relative to image_size (VAR: 1.125)."
    )
    pad_px: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Black border around a picture as it is stored, in pixels a side; 0: none.",
    )
    hflip: bool = Field(default=False, description="Mirror training images at random; VAR trains without.")
    class_order: Literal["name", "number"] = Field(
        default="name", description="Order of the class folders, and so of the labels: as text, or 2 before 10."
    )
    # What launches runs sets 2 where the two readings differ, so that sound data keep their ids.
    reading: Literal[1, 2] = Field(
        default=1, description="How folders are read (mvar.data.folders, pictures); 1: as by the first version."
    )

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

    steps: int = Field(default=600, ge=0, description="Optimizer steps in all.")
    batch_size: int = Field(
        default=32, ge=1, description="Images a step, over all processes and micro-batches together."
    )
    accumulate: int = Field(
        default=1, ge=1, description="Only in ids of the first version; what splits a batch is runtime.accumulate."
    )
    base_lr: float = Field(
        default=1e-4, gt=0, description="Learning rate for 256 images a step: the peak is base_lr * batch_size / 256."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW: decay of the mean gradient, a step.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW: decay of the mean squared gradient, a step.")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW's, at the first step; 0: none.")
    weight_decay_end: float | None = Field(
        default=None, ge=0, description="Weight decay at the last step, reached by a cosine; none: constant."
    )
    schedule: str = Field(
        default="lin0",
        pattern=r"^(lin0|lin|lin00|cos|exp|lin0\.\d+)$",
        description="Of the learning rate after warm-up, by VAR's names (mvar.training.optimizer.lr_and_decay): "
        "lin0, lin, lin00, cos, exp, or lin0.X.",
    )
    warmup_fraction: float = Field(
        default=0.02, ge=0, lt=1, description="Share of the steps with a rising learning rate (VAR: epochs / 50)."
    )
    warmup_start: float = Field(default=0.005, ge=0, le=1, description="Learning rate at step 0, relative to the peak.")
    end_ratio: float = Field(
        default=0.01, ge=0, le=1, description="Learning rate at the last step, relative to the peak; exp: not 0."
    )
    clip_norm: float = Field(default=2.0, gt=0, description="Largest norm of the whole gradient; larger is scaled.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="Of the forward pass (autocast); weights and optimizer are always fp32."
    )

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

    patch_sides: tuple[int, ...] = Field(
        default=(1, 2, 3, 4), description="Tokens a side of every scale, coarse to fine: ascending, 1 or more each."
    )
    vocab_size: int = Field(default=96, ge=2, description="V, codes of the codebook.")
    code_channels: int = Field(default=8, ge=1, description="C, channels of a code.")
    width: int = Field(default=24, ge=1, description="Channels of the first stage, before its multiplier.")
    channel_multipliers: tuple[PositiveInt, ...] = Field(
        default=(1, 2),
        min_length=1,
        description="Channels of every stage, relative to width; each stage after the first halves the resolution.",
    )
    num_res_blocks: int = Field(
        default=1, ge=1, description="Residual blocks a stage of the encoder; the decoder has one more."
    )
    attention: bool = Field(default=False, description="Self-attention after each block of the coarsest stage.")
    mid_attention: bool = Field(default=False, description="Self-attention in the bottleneck.")
    share_phi: int = Field(
        default=4, ge=0, description="Phi convolutions: 0 one a scale, 1 one for all, K shared by the scales (VAR: 4)."
    )
    phi_ratio: float = Field(default=0.5, ge=0, le=1, description="Weight of the convolution in phi; 0: no phi.")
    beta: float = Field(default=0.1, ge=0, description="Weight of the commitment loss (VAR: 0.25).")
    checkpoint: str | None = Field(
        default=None, description="File of a published tokenizer, which is loaded and not trained; none: train one."
    )
    shift_px: int = Field(
        default=1, ge=0, description="Largest random translation of training images in pixels; 0: none."
    )
    seed: int = Field(default=0, ge=0, description="Of the tokenizer's initialisation and training.")
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


class TrainConfig(OptimConfig):
    """Training of the generator."""

    label_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Probability that an image's class is replaced by no class, for guidance."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target that is spread over all codes."
    )
    crops: int = Field(default=1, ge=1, description="Random crops of an image that the token cache holds.")
    tokens: Literal["cache", "online"] = Field(
        default="cache",
        description="Where tokens come from; cache: made once, of crops random crops an image; online: of another "
        "random crop each epoch, encoded while the generator is trained.",
    )
    ema: tuple[PositiveInt, ...] = Field(
        default=(),
        description="Half-lives, in images, of running means of the weights that are kept beside them; none: off. "
        "sample.ema draws with one.",
    )
    init_from: str | None = Field(
        default=None,
        description="File of a generator to start from; layers with the same mixers are taken over, and with steps=0 "
        "that is the run.",
    )

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if not self.steps and not self.init_from:
            raise ValueError("train.steps: 0; allowed: 1 or more, 0 only with train.init_from")
        if self.tokens == "online" and self.crops != 1:
            raise ValueError(f"train.crops: {self.crops} of a cache, beside train.tokens=online; allowed: 1")
        if self.ema and not self.steps:
            raise ValueError("train.ema: a mean over no step; allowed: none with train.steps=0")
        if list(self.ema) != sorted(set(self.ema)):
            raise ValueError(f"train.ema: {quoted(list(self.ema))}; allowed: each half-life once, ascending")
        return self


class RuntimeConfig(Config):
    """What may differ between two executions of one run: never part of its identity."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one.")
    threads: int = Field(default=0, ge=0, description="CPU threads of torch; 0: its own choice.")
    num_workers: int = Field(
        default=0,
        ge=0,
        description="Threads that load batches ahead, with tokens=online processes, which decode images; 0: none.",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Micro-batches that each process splits its part of a step's batch into; micro_batch by number.",
    )
    strategy: Literal["ddp", "fsdp", "auto"] = Field(
        default="ddp",
        description="How several processes share a generator: ddp: each has all weights; fsdp: each has its share of "
        "every layer's weights, gradients and moments; auto: as mvar plan says for the GPUs at hand.",
    )
    micro_batch: PositiveInt | Literal["auto"] | None = Field(
        default=None,
        description="Images that a process works on at once, of its part of a step's batch; none: as accumulate says; "
        "auto: as mvar plan says.",
    )
    checkpoint_activations: Literal["none", "selective", "full", "auto"] = Field(
        default="none",
        description="What layers recompute in the backward pass instead of keeping it: none; selective: all but linear "
        "products and attention; full: everything between their inputs; auto: as mvar plan says.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the layers of the generator for training; sampling and likelihoods stay as they are.",
    )
    log_every: int = Field(default=10, ge=1, description="Steps between rows of metrics.jsonl.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(
        default=2, ge=1, description="Newest checkpoints that an unfinished training keeps; a finished one keeps one."
    )
    sample_batch: PositiveInt | Literal["auto"] = Field(
        default=100,
        description="Images that are drawn at once; auto: 50, on a GPU as many of them as fit, as mvar plan says.",
    )
    likelihood_points: int = Field(
        default=6,
        ge=0,
        description="Times in a training, the last one its end, that NLL of training and of held-out images is logged; "
        "0: never.",
    )
    likelihood_images: int = Field(
        default=200, ge=1, description="Training images, and held-out images, that those are of, evenly spread."
    )
    tf32: bool = Field(
        default=False,
        description="On a GPU: fp32 matrix products and convolutions in TF32, which has 10 bits of 23 and is faster.",
    )
    deterministic: bool = Field(
        default=True,
        description="On a GPU: kernels that give the same bits twice, where there are any; else a resumed run drifts.",
    )
    tensorboard: bool = Field(default=False, description="The first version's tracking=tensorboard.")
    tracking: Literal["none", "tensorboard", "trackio", "wandb"] = Field(
        default="none", description="Tool that the rows of metrics.jsonl go to as well, where it is installed."
    )
    tracking_project: str = Field(
        default="mvar", min_length=1, description="Project of trackio or wandb that runs are tracked in."
    )
    cuda_graphs: bool = Field(
        default=False,
        description="On a GPU: record how a batch of images is drawn, a graph a scale, and replay it for those that "
        "follow. Elsewhere it does nothing.",
    )
    attention_backend: Literal["auto", "torch", "flash_attn"] = Field(
        default="auto",
        description="Kernel of attention; auto: torch's own choice, and for all scales of intra at once flash_attn "
        "where it is installed; flash_attn: of bf16 and fp16, torch's of fp32.",
    )
    scan_backend: Literal["auto", "plain", "torch", "mamba_ssm", "fla"] = Field(
        default="auto",
        description="Kernel of Mamba's scan; auto: on a GPU mamba_ssm or fla, where installed, else torch; plain: the "
        "reference, slow.",
    )

    @property
    def is_open(self) -> bool:
        """Whether how steps are made is to be decided for the GPUs at hand; until then, and on CPUs, see `closed`."""
        return "auto" in (self.strategy, self.micro_batch, self.checkpoint_activations)

    @property
    def images_at_once(self) -> int | None:
        """`micro_batch`; None where it is open, or as `accumulate` says."""
        return None if self.micro_batch == "auto" else self.micro_batch

    @property
    def kept(self) -> Literal["none", "selective", "full"]:
        """`checkpoint_activations`; `none` where it is open."""
        return "none" if self.checkpoint_activations == "auto" else self.checkpoint_activations

    def closed(self) -> Self:
        """With the quickest in the place of each `auto`: all weights, nothing recomputed, as `accumulate` says."""
        quickest = {"strategy": "ddp", "micro_batch": None, "checkpoint_activations": "none"}
        return self.model_copy(update={n: value for n, value in quickest.items() if getattr(self, n) == "auto"})

    def for_batch(self, batch_size: int) -> Self:
        """For a shared stage, whose batch is its own: split in as many parts as divide it."""
        return self.model_copy(update={"accumulate": gcd(self.accumulate, batch_size), "micro_batch": None})

    @model_validator(mode="after")
    def _check_compile(self) -> Self:
        if self.compile and self.scan_backend in ("mamba_ssm", "fla"):
            raise ValueError(
                f"runtime.scan_backend: {self.scan_backend} beside runtime.compile=true; allowed: auto, torch, plain, "
                "or compile=false"
            )
        return self

    @model_validator(mode="after")
    def _check_micro_batch(self) -> Self:
        if self.micro_batch is not None and self.accumulate != 1:
            raise ValueError(
                f"runtime.micro_batch: {self.micro_batch} beside runtime.accumulate={self.accumulate}; allowed: one"
            )
        return self


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
