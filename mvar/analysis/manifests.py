"""What was asked for, as the report shows it: each request with its cells, requests of one table together, and what of
them is missing."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mvar import layout, shipped
from mvar.config import RunConfig, override
from mvar.errors import UserError, one_of
from mvar.plugin_records import SWEEP, Record
from mvar.presets import DIGITS, PRESETS
from mvar.runs.documents import read_document
from mvar.runs.experiment import Experiment, find_experiment, is_experiment
from mvar.runs.grid import experiment_of
from mvar.runs.request import PATTERN, settings_of
from mvar.runs.states import DONE
from mvar.runs.store import Store

MAX_INLINE, MAX_INLINE_TEXT = 2, 60  # settings, and their characters, that a heading names; more have a letter
OWN = "own"  # what a pattern of one's own was called in Table 6 at first


@dataclass(frozen=True)
class AskedCell:
    """One row of a table or point of a figure: what was asked for, and what the paper prints there."""

    label: str
    axes: Mapping[str, Any]
    printed: Mapping[str, Any]
    run_ids: tuple[str, ...]  # one a training seed; none: not asked for, its row is dashes
    evaluation_ids: tuple[str, ...]
    command: str = ""  # that makes it


def in_common(labels: Sequence[str]) -> str:
    """What rows of one training are called together: `VAR` of `VAR, cfg 0` and `VAR, cfg 1.5`; of one row its name."""
    others = [set(label.split(", ")) for label in labels[1:]]
    parts = [part for part in labels[0].split(", ") if all(part in other for other in others)]
    return ", ".join(parts) or f"{labels[0]} and {len(labels) - 1} more"


@dataclass(frozen=True)
class Manifest:
    """A sweep that was asked for. `name` is its file's, e.g. `mixers-digits-steps`."""

    name: str
    sweep: str
    artefact: str  # of the paper, e.g. "Table 6"
    preset: str
    mode: str  # "steps": equal steps; "budget": equal training FLOPs
    budget_flops: float | None
    command: str
    cells: tuple[AskedCell, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the preset, by the request's --set
    grid: Mapping[str, Any] | None = None  # of one's own (`mvar.runs.grid`)
    file: str = ""  # of the experiment, where a plug-in has it
    letter: str = ""  # by which headings call its settings, where these are many

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the preset and can change a number."""
        return {name: value for name, value in self.overrides.items() if not name.startswith("runtime.")}

    @property
    def title(self) -> str:
        """Preset and what the cells have in common, e.g. "digits, equal steps"; many settings by their letter."""
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        settings = f", settings {self.letter}" if self.letter else settings
        if self.mode == "steps":
            return f"{self.preset}, equal steps{settings}"
        budget = f" ({self.budget_flops:.3g} FLOPs)" if self.budget_flops else ""
        return f"{self.preset}, equal training budget{budget}{settings}"

    @property
    def config(self) -> RunConfig:
        """What its cells are made of; a `UserError` where the preset, or a field, is not here."""
        if self.preset not in PRESETS:
            raise one_of("preset", self.preset, PRESETS)
        return override(PRESETS[self.preset], self.overrides)

    @property
    def is_known(self) -> bool:
        """Whether the experiment that was asked for is here."""
        return self.grid is not None or is_experiment(self.sweep)

    @property
    def experiment(self) -> Experiment:
        """What was asked for; a `UserError` where its file is not here."""
        return experiment_of({"sweep": self.sweep, "grid": self.grid})

    @property
    def setting(self) -> str:
        """The name without the sweep: what other sweeps of the same request share, e.g. `digits-steps`."""
        return self.name.removeprefix(f"{self.sweep}-")

    @property
    def tag(self) -> str:
        """What figures are named after: the setting where the sweep is ours, of one's own the whole name."""
        return self.setting if self.grid is None and self.sweep in shipped.names("experiments") else self.name

    @property
    def trainings(self) -> dict[str, tuple[str, ...]]:
        """The runs of each training by its name; rows that one training is sampled for in several ways are one."""
        alike: dict[tuple[str, ...], list[str]] = {}
        for cell in self.cells:
            if cell.run_ids:
                alike.setdefault(cell.run_ids, []).append(cell.label)
        return {in_common(labels): run_ids for run_ids, labels in alike.items()}

    @property
    def asking(self) -> str:
        """The command that asks for all of it."""
        if self.grid is not None:
            return shlex.join(["mvar", "run", "--name", self.sweep])
        settings = [f"{name}={value}" for name, value in self.overrides.items()]
        words = ["mvar", "run", self.sweep, "--preset", self.preset, *(["--set", *settings] if settings else [])]
        return shlex.join([*words, *(["--budget"] if self.mode == "budget" else [])])


@dataclass(frozen=True)
class Missing:
    """A run (or an evaluation of it) that a sweep asked for and that is not there, and the command that makes it."""

    sweep: str
    label: str
    run_id: str
    why: str
    command: str


def read_manifests(
    store: Store, attempt: Callable[[str, Callable[[], Any]], Any], directory: Callable[[str, str | None], str]
) -> list[Manifest]:
    """Every request, those of one table as one, and those of many settings with a letter for them.

    Args:
        store: the results.
        attempt: of a name and a reading: what it returns, or None and a problem.
        directory: of a run id and its key: the run's directory, whatever it is called.
    """
    found = []
    for path in sorted((store.root / layout.SWEEPS).glob("*.json")):
        if manifest := attempt(f"{layout.SWEEPS}/{path.name}", lambda path=path: _read(path, directory)):
            found.append(manifest)
    return _lettered(_merged(found))


def _read(path: Path, directory: Callable[[str, str | None], str]) -> Manifest:
    values = read_document(path)
    cells = []
    for c in values["cells"]:
        keys = c.get("keys", {})
        run_ids = tuple(dict.fromkeys(directory(run_id, keys.get(run_id)) for run_id in c["run_ids"]))
        label = c["axes"].get("pattern", OWN) if c["label"] == OWN else c["label"]
        evaluation_ids = tuple(dict.fromkeys(c["evaluation_ids"]))
        cells.append(AskedCell(label, c["axes"], c["printed"], run_ids, evaluation_ids, values["command"]))
    names = ("sweep", "artefact", "preset", "mode", "budget_flops", "command", "overrides")
    if grid := values.get("grid"):
        experiment_of(values)  # says what is wrong with one that was written by hand
    own = Record.of_document(values.get("plugins", [])).gave.get((SWEEP, values["sweep"]))
    file = own.path if own else ""
    return Manifest(name=path.stem, cells=tuple(cells), grid=grid, file=file, **{name: values[name] for name in names})


def _merged(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Requests that differ in nothing but a pattern of one's own, which is a row more, are one table."""
    groups: dict[Any, list[Manifest]] = {}
    for manifest in manifests:
        groups.setdefault(_table(manifest), []).append(manifest)
    return [group[0] if len(group) == 1 else _together(group) for group in groups.values()]


def _table(manifest: Manifest) -> Any:
    """What requests of one table have in common; of one that stands alone its name."""
    try:
        if manifest.grid is not None or manifest.experiment.sets_pattern:
            return manifest.name
        rest = {name: value for name, value in manifest.overrides.items() if name not in PATTERN}
        settings = settings_of(override(PRESETS[manifest.preset], rest))
    except (UserError, KeyError):  # of an experiment or a preset that is not here
        return manifest.name
    return manifest.sweep, manifest.preset, manifest.mode, manifest.budget_flops, settings


def _together(group: Sequence[Manifest]) -> Manifest:
    first = next((m for m in group if not PATTERN & m.overrides.keys()), group[0])
    cells: dict[str, AskedCell] = {}
    for cell in (cell for manifest in (first, *group) for cell in manifest.cells):
        there = cells.setdefault(cell.label, cell)
        run_ids, evaluation_ids = (
            tuple(dict.fromkeys((*getattr(there, name), *getattr(cell, name))))
            for name in ("run_ids", "evaluation_ids")
        )
        cells[cell.label] = replace(there, run_ids=run_ids, evaluation_ids=evaluation_ids)
    rest = {name: value for name, value in first.overrides.items() if name not in PATTERN}
    return replace(first, cells=tuple(cells.values()), overrides=rest)


def _lettered(manifests: Iterable[Manifest]) -> list[Manifest]:
    """With a letter for each set of settings that is too long for a heading; equal ones share it."""
    letters: dict[str, str] = {}
    found = []
    for manifest in manifests:
        told = ", ".join(f"{name}={value}" for name, value in manifest.settings.items())
        if len(manifest.settings) > MAX_INLINE or len(told) > MAX_INLINE_TEXT:
            letter = letters.setdefault(f"{manifest.preset} {told}", _letter(len(letters)))
            manifest = replace(manifest, letter=letter)
        found.append(manifest)
    return found


def _letter(number: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def unasked(sweep: str) -> Manifest:
    """A sweep that nobody has asked for yet: what the paper prints, no runs, and the command that makes them."""
    found = find_experiment(sweep)
    cells = tuple(AskedCell(cell.label, cell.axes, cell.printed, (), ()) for cell in found.cells(DIGITS))
    return Manifest(f"{sweep}-digits-steps", sweep, found.artefact, "digits", "steps", None, f"mvar run {sweep}", cells)


def missing_of(manifests: Iterable[Manifest], table: pd.DataFrame) -> list[Missing]:
    """What was asked for and is not there.

    Args:
        manifests: what was asked for.
        table: of `mvar.analysis.records.Records`.
    """
    done = table[table["state"] == DONE]
    evaluated = set(zip(done["run_id"], done["evaluation_id"], strict=True))
    states = dict(zip(table["run_id"], table["state"], strict=True))
    found = []
    for manifest in manifests:
        for cell in manifest.cells:
            for run_id in cell.run_ids:
                lacking = [e for e in cell.evaluation_ids if (run_id, e) not in evaluated]
                if not lacking:
                    continue
                state = states.get(run_id, "not there")
                why = state if state != DONE else f"trained; evaluation {', '.join(lacking)} is not there"
                found.append(Missing(manifest.name, cell.label, run_id, why, cell.command or manifest.command))
    return found
