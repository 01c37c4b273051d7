"""The probe `corruption`: tokens of one scale are replaced, and the finer ones are predicted or drawn on that."""

from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mvar.config import Config, RunConfig, SampleConfig
from mvar.errors import UserError
from mvar.probes.contract import Probe, Row, Shown, check_scales
from mvar.probes.knockout import Bench
from mvar.probes.prefix import drawing
from mvar.probes.subject import Subject, over_images

STREAM = 29  # of the random numbers that say what is replaced


class CorruptionSettings(Config):
    """What `corruption` measures."""

    scales: tuple[int, ...] = Field(default=(), description="Whose tokens are replaced, one at a time; none: each.")
    rates: tuple[float, ...] = Field(default=(0.1, 0.3, 1.0), description="Share of them, above 0, at most 1.")
    by: Literal["other", "uniform"] = Field(
        default="other", description="other: the token of another image at that place; uniform: any code."
    )
    samples: int | None = Field(default=None, ge=2, description="Images drawn at most; none: evaluation.num_images.")
    seed: int = Field(default=0, ge=0, description="Of what is replaced, and of the drawing.")


class Corruption(Probe):
    """Change of NLL and FID when tokens of scale k are replaced at a rate.

    NLL is that of the true tokens of all finer scales of held-out images. FID is of training images (of a checkpoint,
    which has none: held-out ones) whose scales 0 to k are given, k with the replaced tokens, and the rest is drawn,
    unguided and from all codes; its change is against the same without a replacement.
    """

    Settings = CorruptionSettings
    ADDED = MappingProxyType({"of": "train"})
    settings: CorruptionSettings
    fields = (
        Shown("rate", "share of tokens replaced", 2),
        Shown("scale", "scale", 0),
        Shown("by", "replaced by"),
        Shown("of", "drawn on images of"),
        Shown("limit", "number of drawn images at most", 0),
        Shown("seed", "seed", 0),
    )
    values = (
        Shown("change", "change of NLL (bits/token)", 3, better="lower"),
        Shown("fid_change", "change of FID", 2, better="lower"),
        Shown("fid", "FID", 2, is_plotted=False),
        Shown("num_images", "drawn images", 0, is_plotted=False),
    )

    def __init__(self, settings: CorruptionSettings) -> None:
        super().__init__(settings)
        self._whole: dict[tuple[int, int, int], float | None] = {}  # FID without a replacement

    def cases(self, config: RunConfig) -> list[Row]:
        """See `Probe.cases`."""
        settings, last = self.settings, config.token_space.schedule.num_scales
        check_scales("scales", settings.scales, 0, last - 1)
        for rate in settings.rates:
            if not 0 < rate <= 1:
                raise UserError(f"rates: {rate:g}; allowed: above 0, at most 1")
        if not settings.rates:
            raise UserError("rates: none; allowed: one or more, above 0, at most 1")
        limit = settings.samples or config.evaluation.num_images
        drawn = {"of": self.splits[0], "limit": limit} if self.has_fid else {"of": None, "limit": None}
        return [
            {"rate": rate, "scale": scale, "by": settings.by, **drawn, "seed": settings.seed}
            for scale in settings.scales or range(last)
            for rate in settings.rates
        ]

    def sample(self, case: Row, config: RunConfig) -> SampleConfig:
        """See `Probe.sample`."""
        return drawing(config.sample, False, cfg_scale=0.0, seed=case["seed"])

    def measure(self, case: Row, subject: Subject) -> Row:
        """See `Probe.measure`."""
        scale, lengths = case["scale"], subject.model.schedule.lengths
        found: Row = {"change": None, "fid_change": None, "fid": None, "num_images": None}
        finer = np.array(lengths[scale + 1 :], float)
        if len(finer):
            bench = subject.bench
            inputs = subject.tokenizer.quantize.inputs(replaced(bench, case))
            changes = bench.bits(inputs=inputs) - bench.clean
            found |= over_images("change", changes[:, scale + 1 :] @ finer / finer.sum())
        if subject.has_fid:
            real, stop = subject.real(case["of"], case["limit"]), subject.model.schedule.offsets[scale + 1]
            key = (scale, case["limit"], case["seed"])  # of one model, and so of one split
            if key not in self._whole:
                self._whole[key] = subject.fid(subject.draw(real.labels, real.tokens[:, :stop]))
            fid, whole = subject.fid(subject.draw(real.labels, replaced(real, case)[:, :stop])), self._whole[key]
            assert fid is not None and whole is not None
            found |= {"fid": fid, "fid_change": fid - whole, "num_images": real.num_images}
        return found


def replaced(bench: Bench, case: Row) -> Tensor:
    """Tokens `(N, L)` with some of one scale replaced; a higher rate replaces those of a lower one too."""
    schedule, (count, _) = bench.model.schedule, bench.tokens.shape
    scale = schedule.span().local(case["scale"])
    rng = np.random.default_rng((STREAM, case["seed"], case["scale"]))
    chosen = rng.random((count, scale.stop - scale.start)) < case["rate"]
    codes = torch.from_numpy(rng.integers(0, bench.model.space.vocab_size, chosen.shape))
    others = bench.tokens[torch.from_numpy(bench.partners), scale] if case["by"] == "other" else codes
    tokens = bench.tokens.clone()
    where = torch.from_numpy(chosen).to(tokens.device)
    tokens[:, scale] = torch.where(where, others.to(tokens.device), tokens[:, scale])
    return tokens
