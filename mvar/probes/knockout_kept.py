"""Effects of cuts that are kept in a folder: each is measured once and written as it is there.

The folder holds `knockout.json`: what it was measured on, and the effects by the texts of their cuts. Other weights or
other images: measured anew.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from mvar import layout
from mvar.errors import UserError
from mvar.files import read_json, write_json
from mvar.probes.cut_text import Cut, parse_cut
from mvar.probes.interventions import sites_of
from mvar.probes.knockout import DRAWS, Bench, Effect, standard_cuts
from mvar.probes.measurable import Measurable, Opened
from mvar.progress import Progress

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Knockout:
    """Effects of cuts on one model.

    Attributes:
        effects: by the texts of the cuts, in the order in which they were asked for.
        sides: tokens a side of every scale.
        num_images: held-out images that they were measured on.
        bits: negative log-likelihood in bits a token without a cut.
    """

    effects: dict[str, Effect]
    sides: tuple[int, ...]
    num_images: int
    bits: float

    def __getitem__(self, cut: str) -> Effect:
        """The effect of a cut by its text."""
        return self.effects[cut]


def measure_cuts(
    what: Measurable,
    cuts: Sequence[Cut],
    folder: Path,
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> Knockout:
    """Effects of cuts, kept in a folder; what is there already is not computed again, and a killed call goes on.

    Args:
        what: the model and images of it.
        cuts: none: `standard_cuts` of the model.
        folder: where they are kept.
        draws: random controls of each.
        progress: called with cuts done and in all.

    Raises:
        UserError: a model that has no such part, or something that is missing; before anything is measured.
    """
    if draws < 1:
        raise UserError(f"draws: {draws}; allowed: 1 or more")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / layout.KNOCKOUT_LOCK):
        record = _Record(what, folder)
        wanted = list(cuts) or record.standard
        texts = list(dict.fromkeys(cut.text for cut in wanted))
        missing = [cut for cut in dict.fromkeys(wanted) if not record.has(cut, draws)]
        for cut in missing:
            sites_of(record.opened.model, cut)
        for done, cut in enumerate(missing):
            if progress:
                progress(done, len(missing))
            record.add(record.bench.effect(cut, draws))
        if progress and missing:
            progress(len(missing), len(missing))
        return record.knockout(texts)


def kept_cuts(what: Measurable, folder: Path) -> Knockout | None:
    """All that was measured of exactly this; None where nothing was."""
    values = _read(what, folder)
    if not values or not values["effects"]:
        return None
    return _as_knockout(values, values["effects"])


class _Record:
    """What the folder has, and the model, opened where something is measured."""

    def __init__(self, what: Measurable, folder: Path) -> None:
        self._what, self._folder = what, folder
        self._values = _read(what, folder) or {}

    @cached_property
    def opened(self) -> Opened:
        return self._what.open()

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

    def has(self, cut: Cut, draws: int) -> bool:
        effect = self._values.get("effects", {}).get(cut.text)
        return effect is not None and len(effect["controls"]) in (0, draws)

    def add(self, effect: Effect) -> None:
        self._values["effects"][effect.cut] = effect.to_json()
        write_json(self._folder / layout.KNOCKOUT_JSON, self._values)

    def knockout(self, texts: Iterable[str]) -> Knockout:
        return _as_knockout(self._values, texts)


def _read(what: Measurable, folder: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, UserError, KeyError, TypeError, AttributeError):  # a cache: measuring mends it
        values = read_json(folder / layout.KNOCKOUT_JSON)
        if values["schema_version"] == SCHEMA_VERSION and values["measured"] == what.identity:
            _as_knockout(values, values["effects"])
            return values
    return None


def _as_knockout(values: dict[str, Any], texts: Iterable[str]) -> Knockout:
    effects = {text: Effect.from_json(values["effects"][text]) for text in texts}
    return Knockout(effects, tuple(values["sides"]), int(values["num_images"]), float(values["bits"]))
