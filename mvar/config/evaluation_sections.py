"""The sections of what a trained model is used for: how images are drawn, and what is measured on them."""

from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from mvar.config.extensible import Extensible, check_name
from mvar.registries import EXTRACTORS, FILTERS, GUIDANCE, METRICS

IS_SPLITS = 10  # of the samples, for the inception score


class SampleConfig(Extensible):
    """How images are drawn. `seed` numbers the set: image i of it has its own stream of random numbers."""

    SECTION = "sample"
    REGISTRIES = (GUIDANCE, FILTERS)
    CHOICES = MappingProxyType({"guidance": GUIDANCE, "filter": FILTERS})

    cfg_scale: float = Field(default=1.5, ge=0, description="Strength of guidance, see guidance; 0: off.")
    guidance: str = Field(
        default="ramp",
        description="Form of guidance, a name in mvar.registries. At scale s of S: ramp, cfg_scale * s / (S - 1); "
        "constant, cfg_scale; interval, cfg_scale in some scales only.",
    )
    filter: str = Field(
        default="top",
        description="Filter of codes, a name in mvar.registries. top: top_k, then top_p; min_p: those, and what is too "
        "unlikely beside the likeliest.",
    )
    top_k: int = Field(default=0, ge=0, description="Codes that a token is drawn from, the likeliest; 0: all.")
    top_p: float = Field(
        default=0.95, ge=0, le=1, description="Probability of the codes that a token is drawn from; 0 or 1: all."
    )
    more_smooth: bool = Field(default=False, description="Mix codes by a Gumbel-softmax; for pictures, never for FID.")
    ema: int = Field(
        default=0,
        ge=0,
        description="Which weights draw: the running mean of this half-life in images, one of train.ema; 0: the last "
        "step's.",
    )
    candidates: int = Field(
        default=1, ge=1, description="Rejection sampling: of so many images a classifier's favourite is kept; 1: off."
    )
    seed: int = Field(default=0, ge=0, description="Numbers the set of images.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="Of the generator as it draws (autocast); its head and the tokenizer are always fp32.",
    )

    @property
    def acceptance_rate(self) -> float:
        """Share of the drawn images that is kept."""
        return 1 / self.candidates


class EvaluationConfig(Extensible):
    """What is measured on samples, and against what.

    Settings of metrics are in no id and no config that is stored: a metric's own record has them.
    """

    SECTION = "evaluation"
    REGISTRIES = (EXTRACTORS, METRICS)
    CHOICES = MappingProxyType({"extractor": EXTRACTORS})

    num_images: int = Field(default=1800, ge=1, description="Samples that are measured; at least `least_images`.")
    extractor: str = Field(
        default="classifier",
        description="What gives features: classifier, trained on the data, inception, FID's own, or one of one's own.",
    )
    inception_weights: str | None = Field(
        default=None, description="torch-fidelity's file of Inception, for extractor=inception; never downloaded."
    )
    reference: str | None = Field(
        default=None,
        description="File of reference in ADM's form (arr_0, mu, sigma, mu_s, sigma_s); none: the held-out images. "
        "FID, sFID and FD-infinity are against its statistics, other metrics of features against its images.",
    )
    reference_resize_factor: float | None = Field(
        default=None,
        ge=1,
        description="Held-out images as reference: their shorter side is resized to this times image_size, then the "
        "centre is cropped; 1: as ADM's reference is prepared; none: data.resize_factor.",
    )
    classifier_steps: int = Field(default=250, ge=1, description="Optimizer steps of the classifier.")
    classifier_seed: int = Field(default=0, ge=0, description="Of the classifier's initialisation and training.")
    kid_subset_size: int = Field(
        default=500, ge=2, description="Images in each of KID's subsets; fewer where a set is smaller."
    )
    prc_neighborhood: int = Field(
        default=3, ge=1, description="Precision and recall: which nearest neighbour bounds an image's surroundings."
    )

    also: tuple[str, ...] = Field(
        default=(),
        description="Metrics beside those that every run has, names in mvar.registries: density_coverage, "
        "fd_infinity, sfid. In no id, and not stored: a record has what was measured.",
    )

    @model_validator(mode="after")
    def _check_also(self, info: ValidationInfo) -> Self:
        for name in self.also:
            check_name(METRICS, name, info)
        return self

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        if self.reference is not None and self.reference_resize_factor is not None:
            raise ValueError(
                "evaluation.reference_resize_factor: given beside evaluation.reference, whose images stay as they are; "
                "allowed: one of the two"
            )
        return self

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if self.num_images < self.least_images:
            raise ValueError(
                f"evaluation.num_images: {self.num_images} is too few; allowed: {self.least_images} or more (the "
                f"inception score is of {IS_SPLITS} splits, precision and recall of prc_neighborhood + 1 images)"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """As `Extensible.plain`; without `also`, which changes nothing that is drawn or measured already."""
        return {name: value for name, value in super().plain().items() if name != "also"}

    @property
    def least_images(self) -> int:
        """Samples that the metrics need."""
        return max(IS_SPLITS, self.prc_neighborhood + 1)
