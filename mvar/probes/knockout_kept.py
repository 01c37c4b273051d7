"""Effects of cuts that are kept in a folder: each is measured once and written as it is there.

The folder holds `knockout.json`: what it was measured on, and the effects by the texts of their cuts. Other weights or
other images: measured anew.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from mvar import layout
from mvar.errors import UserError
from mvar.files import digest, read_json, write_json
from mvar.probes.cut_text import Cut, parse_cut
from mvar.probes.interventions import Activations, Site, cutting, random_sites, sites_of
from mvar.probes.knockout import DRAWS, FID_DRAWS, Bench, Effect, standard_cuts
from mvar.probes.measurable import MAX_IMAGES, Measurable, Opened
from mvar.probes.subject import Subject
from mvar.progress import Progress
from mvar.sampling import balanced_labels
from mvar.training.numerics import precise

SCHEMA_VERSION = 1
DAMAGED = suppress(FileNotFoundError, UserError, LookupError, TypeError, AttributeError, ValueError)  # of a cache
OF_FID = ("fid", "fid_change", "fid_images", "fid_by", "fid_controls")


@dataclass(frozen=True)
class Knockout:
    """Effects of cuts on one model.

    Attributes:
        effects: by the texts of the cuts, in the order in which they were asked for.
        sides: tokens a side of every scale.
        num_images: held-out images that they were measured on.
        bits: negative log-likelihood in bits a token without a cut.
        limit: at most so many images were asked for.
    """

    effects: dict[str, Effect]
    sides: tuple[int, ...]
    num_images: int
    bits: float
    limit: int = MAX_IMAGES

    def __getitem__(self, cut: str) -> Effect:
        """The effect of a cut by its text."""
        return self.effects[cut]


def measure_cuts(
    what: Measurable,
    cuts: Sequence[Cut],
    folder: Path,
    draws: int = DRAWS,
    progress: Progress | None = None,
    fid_images: int = 0,
    fid_draws: int = FID_DRAWS,
) -> Knockout:
    """Effects of cuts, kept in a folder; what is there already is not computed again, and a killed call goes on.

    Args:
        what: the model and images of it.
        cuts: none: `standard_cuts` of the model.
        folder: where they are kept.
        draws: random controls of each; more that are there stay.
        progress: called with cuts done and in all.
        fid_images: images that are drawn with each cut, by the run's own settings, for its FID; 0: none.
        fid_draws: random controls that as many are drawn with.

    Raises:
        UserError: a model that has no such part, or something that is missing; before anything is measured.
    """
    for name, count in (("draws", draws), ("fid_draws", fid_draws)):
        if count < 1:
            raise UserError(f"{name}: {count}; allowed: 1 or more")
    asked = Asked(draws, fid_images, fid_draws)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / layout.KNOCKOUT_LOCK), precise(what.runtime):
        record = _Record(what, folder)
        wanted = list(cuts) or record.standard
        texts = list(dict.fromkeys(cut.text for cut in wanted))
        missing = [cut for cut in dict.fromkeys(wanted) if not record.has(cut, asked)]
        for cut in missing:
            sites_of(record.opened.model, cut)
            if fid_images:
                check_drawn(record.opened)
        for done, cut in enumerate(missing):
            if progress:
                progress(done, len(missing))
            record.measure(cut, asked)
        if progress and missing:
            progress(len(missing), len(missing))
        return record.knockout(texts)


def kept_cuts(what: Measurable, folder: Path) -> Knockout | None:
    """All that was measured of exactly this; None where nothing was."""
    values = _read(what, folder)
    if not values or not values["effects"]:
        return None
    return _as_knockout(values, values["effects"])


def check_drawn(opened: Opened) -> None:
    """Refuse a model whose images nothing judges.

    Raises:
        UserError: it is one.
    """
    if opened.judge is None:
        raise UserError("fid: nothing judges images that are drawn; allowed: a run, or a checkpoint with `evaluation`")


@dataclass(frozen=True)
class Asked:
    """How a cut is to be measured: random controls, images that are drawn for FID, and controls of these."""

    draws: int
    fid_images: int
    fid_draws: int


class _Record:
    """What the folder has, and the model, opened where something is measured."""

    def __init__(self, what: Measurable, folder: Path) -> None:
        self._what, self._folder = what, folder
        self._values = _read(what, folder) or {}
        self._whole: dict[int, float] = {}  # FID without a cut, by number of images

    @cached_property
    def opened(self) -> Opened:
        return self._what.open()

    @cached_property
    def _subject(self) -> Subject:
        return Subject(self.opened, self._what.identity["batch_size"])

    @cached_property
    def bench(self) -> Bench:
        bench = Bench(self.opened, self._what.identity["batch_size"])
        clean, lengths = bench.clean.mean(0), bench.model.schedule.lengths
        self._values = {
            "schema_version": SCHEMA_VERSION,
            "measured": self._what.identity,
            "sides": bench.model.schedule.sides,
            "num_images": bench.num_images,
            "bits": float(clean @ lengths / sum(lengths)),
            "bits_by_scale": clean.tolist(),
            "standard": self._values.get("standard", []),
            "effects": self._values.get("effects", {}),
        }
        return bench

    @property
    def standard(self) -> list[Cut]:
        """The standard cuts, known without the model once they were asked for."""
        if not self._values.get("standard"):
            cuts = standard_cuts(self.opened.model)
            self._values["standard"] = [cut.text for cut in cuts]
        return [parse_cut(text) for text in self._values["standard"]]

    def has(self, cut: Cut, asked: Asked) -> bool:
        effect = self._effect(cut)
        if effect is None or not self._has_likelihood(effect, asked):
            return False
        drawn = len(effect.fid_controls) >= asked.fid_draws or not effect.controls
        return not asked.fid_images or (self._is_judged_so(effect, asked) and drawn)

    def _effect(self, cut: Cut) -> Effect | None:
        values = self._values.get("effects", {}).get(cut.text)
        return Effect.from_json(values) if values else None

    @staticmethod
    def _has_likelihood(effect: Effect, asked: Asked) -> bool:
        """Whether it has as many controls or more, by scale too, as documents of before have not."""
        enough = not effect.controls or len(effect.controls) >= asked.draws
        return enough and len(effect.controls_by_scale) == len(effect.controls)

    def _is_judged_so(self, effect: Effect, asked: Asked) -> bool:
        found = self._what.judged_by()
        judged = effect.fid_by == digest(found) if effect.fid_by else "reference" not in found
        return judged and effect.fid_images == asked.fid_images

    def measure(self, cut: Cut, asked: Asked) -> None:
        """What is missing of a cut's effect; likelihoods and FID that are there are not measured again."""
        before = self._effect(cut)
        effect = before if before and self._has_likelihood(before, asked) else self.bench.effect(cut, asked.draws)
        stays = before and (not asked.fid_images or self._is_judged_so(before, asked))
        effect = replace(effect, **{name: getattr(before if stays else Effect, name) for name in OF_FID})
        self.add(effect)
        if asked.fid_images:
            self._measure_fid(cut, effect, asked)

    def _measure_fid(self, cut: Cut, effect: Effect, asked: Asked) -> None:
        """FID of images that are drawn with the cut, then with each random one, which is kept as it is there."""
        sites, count = sites_of(self.bench.model, cut), asked.fid_images
        mean = self.bench.mean_of(sites) if cut.kind == "mean" else None
        if not effect.fid_images:
            clean, fid = self._fid((), cut.kind, mean, count), self._fid(sites, cut.kind, mean, count)
            judged = {"fid_images": count, "fid_by": digest(self._what.judged_by())}
            effect = replace(effect, fid=fid, fid_change=fid - clean, **judged)
            self.add(effect)
        assert effect.fid is not None and effect.fid_change is not None
        whole = effect.fid - effect.fid_change
        for draw in range(len(effect.fid_controls), asked.fid_draws):
            if others := random_sites(sites, draw):
                control = self._fid(others, cut.kind, mean, count) - whole
                effect = replace(effect, fid_controls=(*effect.fid_controls, control))
                self.add(effect)

    def _fid(self, sites: Sequence[Site], kind: str, mean: Activations | None, count: int) -> float:
        """FID of images that are drawn with sites cut; without any it is computed once."""
        if not sites and count in self._whole:
            return self._whole[count]
        labels = balanced_labels(count, self.bench.model.space.num_classes).to(self.bench.tokens.device)
        images = self._subject.draw(
            labels,
            self.bench.tokens.new_empty(count, 0),
            lambda numbers: cutting(sites, self.bench.instead(sites, numbers, kind, mean) if sites else None),
        )
        fid = self._subject.fid(images)
        assert fid is not None  # `check_drawn` has looked
        if not sites:
            self._whole[count] = fid
        return fid

    def add(self, effect: Effect) -> None:
        self._values["effects"][effect.cut] = effect.to_json()
        write_json(self._folder / layout.KNOCKOUT_JSON, self._values)

    def knockout(self, texts: Iterable[str]) -> Knockout:
        return _as_knockout(self._values, texts)


def _read(what: Measurable, folder: Path) -> dict[str, Any] | None:
    """A document of exactly this, with what can be read of its effects; None: there is none. Measuring mends it."""
    with DAMAGED:
        values = read_json(folder / layout.KNOCKOUT_JSON)
        if values["schema_version"] == SCHEMA_VERSION and values["measured"] == what.identity:
            effects = {text: effect for text, effect in values["effects"].items() if _is_sound(text, effect, values)}
            standard = values.get("standard", [])
            _as_knockout(values, ())
            return values | {"effects": effects, "standard": standard if _are_cuts(standard) else []}
    return None


def _is_sound(text: str, effect: Any, values: dict[str, Any]) -> bool:
    with DAMAGED:
        found = Effect.from_json(effect)
        return _are_cuts([text]) and found.cut == text and len(found.change_by_scale) == len(values["sides"])
    return False


def _are_cuts(texts: Any) -> bool:
    with DAMAGED:
        return all(parse_cut(text).text == text for text in texts)
    return False


def _as_knockout(values: dict[str, Any], texts: Iterable[str]) -> Knockout:
    effects = {text: Effect.from_json(values["effects"][text]) for text in texts}
    counts = int(values["num_images"]), float(values["bits"]), int(values["measured"]["limit"])
    return Knockout(effects, tuple(map(int, values["sides"])), *counts)
