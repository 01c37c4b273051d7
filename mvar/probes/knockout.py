"""What a part of a trained model is for: how much worse held-out images are predicted when it is cut.

Beside every cut of keys stand random ones of the same size: of every query and head as many keys are cut, drawn
among all that it sees, the cut ones included.
Shapes: `M` images, `S` scales, `B` batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from mvar.errors import UserError
from mvar.evaluation.likelihood import images_at_once, token_bits_and_errors
from mvar.mixers.base import chosen_in
from mvar.pattern import mixer_name
from mvar.probes.cut_text import Cut
from mvar.probes.interval import t_factor, welch_half_width
from mvar.probes.interventions import (
    Activations,
    Site,
    cutting,
    mixers_of_model,
    random_sites,
    recording,
    shares_kept,
    sites_of,
)
from mvar.probes.measurable import Opened
from mvar.scales import ScaleSchedule
from mvar.transformer import ScaleTransformer

DRAWS = 5  # of the random controls
FID_DRAWS = 3  # of those that images are drawn with, which takes longer; a single one has no interval
PARTNER_STREAM = 23  # of the random numbers that say which image another one is resampled from


@dataclass(frozen=True)
class Effect:
    """What a cut does to the held-out likelihood: changes in bits a token, more than 0 is worse.

    Deviations are over images, of the change of each; `t_factor` makes intervals of them.
    """

    cut: str
    """Its text."""
    num_images: int
    """M."""
    bits: float
    """Negative log-likelihood with the cut, in bits a token."""
    change: float
    """By how much that is more than without it: mean over images and tokens."""
    sd: float
    """Standard deviation of the change over images."""
    change_by_scale: tuple[float, ...]
    """The change of each scale's tokens."""
    sd_by_scale: tuple[float, ...]
    """Their standard deviations."""
    kept: float | None
    """Share of the query-key pairs, of those heads and layers, that is left; None where no keys are cut."""
    controls: tuple[float, ...]
    """The change of each random cut of the same size; none where there is nothing to choose."""
    beyond: float | None
    """The change minus the mean of the controls'; None without controls."""
    beyond_sd: float | None
    """Its standard deviation over images."""
    fid: float | None = None
    """FID of images that are drawn with the cut; None where it was not asked for."""
    fid_change: float | None = None
    """By how much that is more than of the same images drawn without it."""
    fid_images: int = 0
    """Images that these two are of."""
    fid_by: str = ""
    """What they are judged by, as a digest; empty: the run's extractor and held-out images, in older documents."""
    fid_controls: tuple[float, ...] = ()
    """By how much FID is more with each random cut; none where there is nothing to choose, and in older documents."""
    controls_by_scale: tuple[tuple[float, ...], ...] = ()
    """The change of each scale's tokens with each random cut, draws x S; none in older documents."""
    beyond_sd_by_scale: tuple[float, ...] = ()
    """Of each scale the standard deviation over images of the change minus the mean of the controls'."""

    @property
    def half_width(self) -> float:
        """Half of the two-sided 95 % t interval of `change` over images; NaN for one image."""
        return self.sd * t_factor(self.num_images)

    @property
    def beyond_half_width(self) -> float | None:
        """Of `beyond`, over images and over draws of the controls; None without controls, NaN for one image or draw."""
        if self.beyond_sd is None:
            return None
        return welch_half_width((self.beyond_sd, self.num_images), (self.control_sd or 0.0, len(self.controls)))

    @property
    def by_scale(self) -> "list[Effect]":
        """The same of each scale's tokens alone, `bits`, `kept` and FID left out; empty without controls by scale."""
        if not self.controls_by_scale:
            return []
        columns = zip(*self.controls_by_scale, strict=True)
        numbers = zip(self.change_by_scale, self.sd_by_scale, columns, self.beyond_sd_by_scale, strict=True)
        return [
            Effect(
                *(self.cut, self.num_images, float("nan"), change, sd, (change,), (sd,), None),
                controls=controls,
                beyond=change - float(np.mean(controls)),
                beyond_sd=beyond_sd,
            )
            for change, sd, controls, beyond_sd in numbers
        ]

    @property
    def control(self) -> float | None:
        """Mean change of the controls."""
        return float(np.mean(self.controls)) if self.controls else None

    @property
    def control_sd(self) -> float | None:
        """Standard deviation of the controls over draws; None with fewer than two."""
        return float(np.std(self.controls, ddof=1)) if len(self.controls) > 1 else None

    @property
    def fid_control(self) -> float | None:
        """Mean change of FID of the controls."""
        return float(np.mean(self.fid_controls)) if self.fid_controls else None

    @property
    def fid_beyond(self) -> float | None:
        """The change of FID minus the mean of the controls'; None without controls."""
        return None if self.fid_control is None or self.fid_change is None else self.fid_change - self.fid_control

    @property
    def fid_beyond_half_width(self) -> float:
        """Half of the 95 % t interval of `fid_beyond` over draws of the controls; NaN with fewer than two."""
        count = len(self.fid_controls)
        return float(np.std(self.fid_controls, ddof=1)) * t_factor(count) if count > 1 else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Effect":
        """Read what `to_json` wrote.

        Raises:
            ValueError: a value is missing, is no number where one is wanted, or is not of as many scales as the others.
        """
        if values.get("fid_control") is not None:  # of one draw, as it was kept once
            values = {"fid_controls": [values["fid_control"]]} | values
        found = _adapter().validate_python(values)
        found.check_scales()
        return found

    def check_scales(self) -> None:
        """Refuse values by scale that are not of as many scales as the others, or not of as many draws.

        Raises:
            ValueError: says of which cut.
        """
        count, draws = len(self.change_by_scale), len(self.controls_by_scale)
        by_scale = [self.sd_by_scale, *self.controls_by_scale, *([self.beyond_sd_by_scale] if draws else [])]
        if any(len(values) != count for values in by_scale) or draws not in (0, len(self.controls)):
            raise ValueError(f"effect {self.cut!r}: not of as many scales and draws everywhere")


@cache
def _adapter() -> TypeAdapter[Effect]:
    return TypeAdapter(Effect)


class Bench:
    """A model and held-out images, ready to be measured with something cut.

    Attributes:
        labels: `(M,)` classes of the images.
        tokens: `(M, L)`; `inputs` `(M, L - n_0, C)` are what the tokenizer makes of them.
        partners: `(M,)` for each image another one, which it is resampled from.

    Args:
        opened: the model and images whose tokens are known.
        batch_size: images at a time, at most: as many as a likelihood is computed of at once.

    Raises:
        UserError: no images, or images without tokens.
    """

    def __init__(self, opened: Opened, batch_size: int) -> None:
        if opened.codes is None or not opened.num_images:
            raise UserError("images: none to measure on; allowed: at least one held-out image")
        self.model, self.num_images = opened.model, opened.num_images
        self._batch_size = images_at_once(batch_size, self.model.schedule.num_tokens)
        parts = [(*opened.batch(numbers), opened.codes(numbers)) for numbers in self.parts()]
        self.labels, self.inputs, self.tokens = (torch.cat(part) for part in zip(*parts, strict=True))
        order = np.random.default_rng(PARTNER_STREAM).permutation(self.num_images)
        self.partners = np.empty_like(order)
        self.partners[order] = np.roll(order, -1)  # one cycle: no image is its own
        self._clean: np.ndarray | None = None

    @property
    def clean(self) -> np.ndarray:
        """Bits `(M, S)` without a cut."""
        if self._clean is None:
            self._clean = self.bits()
        return self._clean

    @torch.inference_mode()
    def bits(
        self,
        sites: Sequence[Site] = (),
        kind: str = "cut",
        mean: Activations | None = None,
        inputs: Tensor | None = None,
    ) -> np.ndarray:
        """Bits a token of every image and scale `(M, S)`, float64, under teacher forcing with something cut.

        `inputs` stand in for those that the true tokens make.
        """
        inputs = self.inputs if inputs is None else inputs
        found, was_training = [], self.model.training
        self.model.eval()
        try:
            for numbers in self.parts():
                with cutting(sites, self.instead(sites, numbers, kind, mean)) if sites else nullcontext():
                    found.append(self._bits(numbers, inputs))
        finally:
            self.model.train(was_training)
        bits = np.concatenate(found)
        if not np.isfinite(bits).all():
            raise UserError("model: its logits on held-out images are not finite; allowed: finite")
        return bits

    def parts(self) -> Iterator[range]:
        """The numbers of the images, a batch at a time."""
        starts = range(0, self.num_images, self._batch_size)
        return (range(start, min(start + self._batch_size, self.num_images)) for start in starts)

    def _bits(self, numbers: range, inputs: Tensor) -> np.ndarray:
        part = slice(numbers.start, numbers.stop)
        bits, _ = token_bits_and_errors(self.model, inputs[part], self.tokens[part], self.labels[part])
        by_scale = bits.split(self.model.schedule.lengths, dim=1)
        return torch.stack([part.mean(1) for part in by_scale], 1).cpu().numpy()

    def instead(self, sites: Sequence[Site], numbers: range, kind: str, mean: Activations | None) -> Activations | None:
        """What stands in for what is cut of images `numbers`, which may be drawn ones: these begin anew after M.

        `mean` of every kind but `resample`, which takes it of each one's partner.
        """
        if kind != "resample":
            return mean
        return self.recorded(sites, self.partners[np.array(numbers) % self.num_images])

    @torch.inference_mode()
    def recorded(self, sites: Sequence[Site], numbers: Iterable[int]) -> Activations:
        """What the sites have of some images under teacher forcing."""
        index = list(numbers)
        with recording(sites) as found:
            self.model(self.labels[index], self.inputs[index])
        return found

    @torch.inference_mode()
    def mean_of(self, sites: Sequence[Site]) -> Activations:
        """What the sites have, mean over all images."""
        return Activations.mean(self.recorded(sites, numbers) for numbers in self.parts())

    def effect(self, cut: Cut, draws: int = DRAWS) -> Effect:
        """What a cut does, and random ones of its size.

        Raises:
            UserError: the model has no such part; a single image where another one is wanted.
        """
        sites = sites_of(self.model, cut)
        if cut.kind == "resample" and self.num_images < 2:
            raise UserError(f"cut '{cut.text}': one image; allowed: two or more, to resample from another")
        mean = self.mean_of(sites) if cut.kind == "mean" else None
        lengths = np.array(self.model.schedule.lengths)
        weights = lengths / lengths.sum()
        bits = self.bits(sites, cut.kind, mean)
        changes = bits - self.clean
        change = changes @ weights
        others = [random_sites(sites, draw) for draw in range(draws)]
        by_scale = [self.bits(other, cut.kind, mean) - self.clean for other in others if other]
        controls = [control @ weights for control in by_scale]
        beyond = change - np.mean(controls, axis=0) if controls else None
        beyond_by_scale = changes - np.mean(by_scale, axis=0) if by_scale else np.empty((len(changes), 0))
        return Effect(
            cut=cut.text,
            num_images=self.num_images,
            bits=float((bits @ weights).mean()),
            change=float(change.mean()),
            sd=_sd(change),
            change_by_scale=tuple(changes.mean(0).tolist()),
            sd_by_scale=tuple(map(_sd, changes.T)),
            kept=shares_kept(sites),
            controls=tuple(float(control.mean()) for control in controls),
            beyond=None if beyond is None else float(beyond.mean()),
            beyond_sd=None if beyond is None else _sd(beyond),
            controls_by_scale=tuple(tuple(control.mean(0).tolist()) for control in by_scale),
            beyond_sd_by_scale=tuple(map(_sd, beyond_by_scale.T)),
        )


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def standard_cuts(model: ScaleTransformer) -> list[Cut]:
    """What the report shows of a model: the whole parts, then by scale, layer, pair of scales and head.

    Those that the model has not are left out.
    """
    scales, layers = range(model.schedule.num_scales), range(model.config.depth)
    heads = range(model.config.num_heads) if model.config.num_heads > 1 else ()
    several = [layer for layer in layers if len(chosen_in(model.config, model.config.layers[layer])) > 1]
    branches = dict.fromkeys(name for layer, name, _ in mixers_of_model(model) if layer in several)
    cuts = [
        *(Cut(target) for target in ("own", "coarser")),
        *(Cut("branch", mixer=mixer_name(name)) for name in branches),
        Cut("state"),
        *(Cut("state", scale=k) for k in scales[1:]),
        *(Cut("scale", scale=k) for k in scales),
        *(Cut(target, layers=(layer,)) for target in ("own", "coarser", "state") for layer in layers),
        *(Cut("scale", scale=key, queries=query) for query in scales for key in scales[: query + 1]),
        *(Cut(t, layers=(layer,), heads=(h,)) for t in ("own", "coarser") for layer in layers for h in heads),
    ]
    return [cut for cut in cuts if _is_there(model, cut)]


def _is_there(model: ScaleTransformer, cut: Cut) -> bool:
    try:
        return bool(sites_of(model, cut))
    except UserError:
        return False


def matrix_of(effects: Iterable[Effect], schedule: ScaleSchedule) -> np.ndarray:
    """Changes `(S, S)` of cutting keys of a scale (column) for queries of one (row); NaN where none was measured."""
    found = np.full((schedule.num_scales,) * 2, np.nan)
    by_cut = {effect.cut: effect for effect in effects}
    for query in range(schedule.num_scales):
        for key in range(query + 1):
            if effect := by_cut.get(Cut("scale", scale=key, queries=query).text):
                found[query, key] = effect.change
    return found
