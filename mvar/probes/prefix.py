"""The probe `prefix`: the first scales of real images are given, the model draws the rest."""

from types import MappingProxyType
from typing import Any

from pydantic import Field

from mvar.config import Config, RunConfig, SampleConfig
from mvar.data.sources.contract import Split
from mvar.errors import UserError
from mvar.probes.contract import Probe, Row, Shown, check_scales, check_split
from mvar.probes.subject import Subject, over_images


class PrefixSettings(Config):
    """What `prefix` measures."""

    scales: tuple[int, ...] = Field(default=(), description="How many are given; none: 0 to S, all of them.")
    of: tuple[str, ...] = Field(
        default=(), description="Whose images: train, heldout; none: both, of a checkpoint heldout."
    )
    cfg_scale: tuple[float, ...] = Field(
        default=(), description="Of the drawing; none: 0, and the run's own where it has one."
    )
    filtered: bool = Field(default=False, description="Draw through the run's filter (top_k, top_p); else from all.")
    samples: int | None = Field(default=None, ge=2, description="Images at most; none: evaluation.num_images.")
    seed: int = Field(default=0, ge=0, description="Of the drawing.")


class Prefix(Probe):
    """FID and NLL when the first k true scales of training images, or of held-out ones, are given.

    k = 0 gives nothing but the class; with k = S nothing is drawn, which is the tokenizer's own floor. NLL is that of
    the true tokens that are not given, whatever is drawn and however it is guided.
    """

    Settings = PrefixSettings
    FORMER = MappingProxyType({"guidance": "cfg_scale"})
    settings: PrefixSettings
    fields = (
        Shown("scales", "true scales given", 0),
        Shown("of", "images of"),
        Shown("cfg_scale", "cfg", 2),
        Shown("filter", "filter"),
        Shown("limit", "samples at most", 0),
        Shown("seed", "seed of the drawing", 0),
    )
    values = (
        Shown("fid", "FID", 2, better="lower"),
        Shown("bits", "NLL of the rest (bits/token)", 3, better="lower"),
        Shown("num_images", "number of samples", 0, is_plotted=False),
    )

    def cases(self, config: RunConfig) -> list[Row]:
        """See `Probe.cases`."""
        settings, last = self.settings, config.token_space.schedule.num_scales
        check_scales("scales", settings.scales, 0, last)
        for split in settings.of:
            check_split(split, self.splits)
        for strength in settings.cfg_scale:
            if strength < 0:
                raise UserError(f"cfg_scale: {strength:g}; allowed: 0 or more")
        own = config.sample
        strengths = settings.cfg_scale or tuple(dict.fromkeys((0.0, float(own.cfg_scale))))
        return [
            {
                "scales": k,
                "of": split,
                "cfg_scale": cfg_scale,
                "filter": own.filter if settings.filtered else "none",
                "limit": settings.samples or config.evaluation.num_images,
                "seed": settings.seed,
            }
            for split in settings.of or self.splits
            for cfg_scale in strengths
            for k in settings.scales or range(last + 1)
        ]

    def sample(self, case: Row, config: RunConfig) -> SampleConfig:
        """See `Probe.sample`."""
        wanted: dict[str, Any] = {"cfg_scale": case["cfg_scale"], "seed": case["seed"]}
        return drawing(config.sample, case["filter"] != "none", **wanted)

    def measure(self, case: Row, subject: Subject) -> Row:
        """See `Probe.measure`."""
        split: Split = case["of"]
        real, given = subject.real(split, case["limit"]), case["scales"]
        schedule = subject.model.schedule
        found: Row = {"fid": None, "bits": None, "num_images": real.num_images}
        if subject.has_fid:
            found["fid"] = subject.fid(subject.draw(real.labels, real.tokens[:, : schedule.offsets[given]]))
        if given < schedule.num_scales:
            left = [float(n) for n in schedule.lengths[given:]]
            found |= over_images("bits", real.clean[:, given:] @ left / sum(left))
        return found


def drawing(own: SampleConfig, filtered: bool, **fields: Any) -> SampleConfig:
    """A run's settings of sampling with others: every image is kept, and drawn by the weights that the probe looks at.

    Not filtered: from all codes.
    """
    plain = {} if filtered else {"filter": "top", "top_k": 0, "top_p": 0.0}
    return own.model_copy(update={"candidates": 1, "more_smooth": False, "ema": 0, **plain, **fields})
