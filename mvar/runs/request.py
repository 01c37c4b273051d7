"""Cells of a sweep: a config with its place in a table or figure and what the paper prints there.

Printed numbers are read from `experiments/paper/*.csv` and never typed in. A sweep asked for is kept as a manifest, the
list of runs that a report expects.
"""

import csv
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock

from mvar.config import RunConfig, identity, override
from mvar.config.parsing import current_name
from mvar.errors import UserError, quoted, warn
from mvar.files import digest
from mvar.presets import PRESETS
from mvar.runs.documents import Damaged, Foreign, read_document, read_or_empty, write_document
from mvar.runs.store import Store

PAPER = files("experiments") / "paper"
MAX_STEPS = 10**12  # that a budget may amount to: years on any machine
STEPS, BUDGET = "steps", "budget"  # the modes: equal steps (the paper's way), equal training FLOPs


@dataclass(frozen=True)
class Cell:
    """One row of a table or point of a figure, before seeds are given."""

    label: str
    config: RunConfig
    axes: Mapping[str, Any] = field(default_factory=dict)
    printed: Mapping[str, Any] = field(default_factory=dict)  # as the paper prints it; empty where it prints nothing


@dataclass(frozen=True)
class Sweep:
    """A paper artefact: a name for the command line and its cells, derived from a preset."""

    name: str
    artefact: str  # e.g. "Table 6"
    summary: str
    build: Callable[[RunConfig], list[Cell]]
    baseline: Callable[[RunConfig], RunConfig]  # whose training FLOPs are the default budget

    def cells(self, config: RunConfig, mode: str = STEPS, budget_flops: float | None = None) -> list[Cell]:
        """The cells for a preset.

        Args:
            config: the preset, overrides applied.
            mode: `steps`: every cell trains as many steps as the preset; `budget`: steps are chosen so that every
                cell spends the same training FLOPs.
            budget_flops: the budget; None: what the baseline spends at the preset's steps.
        """
        cells = self.build(config)
        if mode == STEPS:
            return cells
        budget = training_flops(self.baseline(config)) if budget_flops is None else budget_flops
        return [replace(cell, config=at_budget(cell.config, budget)) for cell in cells]


def training_flops(config: RunConfig) -> int:
    """FLOPs of the generator's whole training, analytic."""
    from mvar.cost import train_flops  # here: it imports torch, which `mvar status` does without

    return train_flops(config.model, config.token_space, config.train.steps * config.train.batch_size)


def at_budget(config: RunConfig, budget_flops: float) -> RunConfig:
    """The config with the number of steps whose training FLOPs are nearest to a budget, at least one.

    Raises:
        UserError: it trains no step, so that there is nothing to make equal; or more than `MAX_STEPS`.
    """
    if not config.train.steps:
        raise UserError(
            "train.steps: 0 trains nothing, which no budget can make equal; allowed with --budget: 1 or more"
        )
    steps = budget_flops / (training_flops(config) / config.train.steps)
    if steps > MAX_STEPS:
        raise UserError(
            f"budget: {budget_flops:g} FLOPs are {steps:.1g} steps of {config.model.pattern}; allowed: at most "
            f"{budget_flops * (MAX_STEPS / steps):.3g}, {MAX_STEPS:,} steps"
        )
    return override(config, {"train.steps": max(1, round(steps))})


def paper_rows(table: str) -> list[dict[str, Any]]:
    """A table of the paper as printed: numbers where a field is a number, else its text; empty fields left out."""
    with (PAPER / f"{table}.csv").open(newline="") as file:
        return [{key: _number(text) for key, text in row.items() if text} for row in csv.DictReader(file)]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def with_seeds(config: RunConfig, seeds: Iterable[int], sample_seeds: Iterable[int] = ()) -> list[RunConfig]:
    """The config for each seed of initialisation and training, and for each one's sampling seeds (none: its own)."""
    sampled = list(sample_seeds) or [config.sample.seed]
    return [override(config, {"seed": seed, "sample.seed": other}) for seed in seeds for other in sampled]


@dataclass(frozen=True)
class Request:
    """A sweep as asked for on the command line."""

    sweep: Sweep
    preset: str
    config: RunConfig  # the preset with `overrides` applied
    seeds: tuple[int, ...] = (0,)
    overrides: Mapping[str, str] = field(default_factory=dict)
    mode: str = STEPS
    budget_flops: float | None = None
    sample_seeds: tuple[int, ...] = ()  # sets of images of one trained run; none: the config's own

    @property
    def stem(self) -> str:
        """What the manifests of all requests of this sweep, preset and mode are called, but for their settings."""
        return f"{self.sweep.name}-{self.preset}-{self.mode}"

    @property
    def settings(self) -> str:
        """Digest of what is asked for, however it was spelled: the resulting config, seeds and execution aside."""
        return _settings(self.config)

    @property
    def budget(self) -> float | None:
        """FLOPs that every cell's training spends; None in mode `steps`."""
        if self.mode == BUDGET and self.budget_flops is None:
            return float(training_flops(self.sweep.baseline(self.config)))
        return self.budget_flops

    @property
    def name(self) -> str:
        """The manifest's name: `stem`, and a digest where the resulting config or an own budget set it apart."""
        if self.settings == _settings(PRESETS[self.preset]) and self.budget_flops is None:
            return self.stem
        return f"{self.stem}-{digest([self.settings, self.budget_flops])}"

    def cells(self) -> list[Cell]:
        """The cells, seeds not yet given."""
        return self.sweep.cells(self.config, self.mode, self.budget_flops)

    def configs(self) -> list[RunConfig]:
        """Every run of the request, cell by cell, seed by seed."""
        return [config for cell in self.cells() for config in with_seeds(cell.config, self.seeds, self.sample_seeds)]


def _settings(config: RunConfig) -> str:
    values = config.canonical()
    values = {name: value for name, value in values.items() if name not in ("seed", "runtime")}
    values["model"] = identity.of_section(config.model)  # cells may hold the mixers that the base has settings of
    values["sample"] = {name: value for name, value in values["sample"].items() if name != "seed"}
    return digest(values)


def manifest_path(store: Store, request: Request) -> Path:
    """Where what was asked for is kept: in the manifest of an equal request, whatever that is called."""
    own = store.manifest_path(request.name)
    for path in () if own.exists() else sorted(own.parent.glob(f"{request.stem}*.json")):
        with suppress(UserError, KeyError):  # one that is damaged, or of a preset that is no more
            found = read_document(path)
            if (found["sweep"], found["preset"], found["mode"]) != (request.sweep.name, request.preset, request.mode):
                continue
            stored = override(PRESETS[found["preset"]], found["overrides"])
            if _settings(stored) == request.settings and found["budget_flops"] == request.budget:
                return path
    return own


def write_manifest(store: Store, request: Request, command: Sequence[str]) -> Path:
    """Store what was asked for; seeds of an earlier equal request are kept beside the new ones.

    Under a lock: of two commands that ask for other seeds at once neither loses its own.
    """
    (store.root / "sweeps").mkdir(parents=True, exist_ok=True)
    with FileLock(store.root / "sweeps" / ".lock"):
        return _write_manifest(manifest_path(store, request), store, request, command)


def _earlier(path: Path) -> dict[str, Any]:
    """The manifest of an earlier equal request; empty where there is none, or a damaged one, which is replaced."""
    try:
        return read_or_empty(path)
    except Foreign:
        raise
    except Damaged as damaged:
        warn(f"{damaged}; it is replaced; seeds that earlier commands asked for are to be asked for again")
        return {}


def _write_manifest(path: Path, store: Store, request: Request, command: Sequence[str]) -> Path:
    earlier = _earlier(path)
    seeds = sorted({*earlier.get("seeds", []), *request.seeds})
    asked = request.sample_seeds or (request.config.sample.seed,)
    sample_seeds = sorted({*earlier.get("sample_seeds", []), *asked})
    cells = []
    for cell in request.cells():
        configs = [store.as_stored(config) for config in with_seeds(cell.config, seeds, sample_seeds)]
        cells.append(
            {
                "label": cell.label,
                "axes": dict(cell.axes),
                "printed": dict(cell.printed),
                "run_ids": list(dict.fromkeys(config.run_id for config in configs)),
                "keys": {config.run_id: config.key for config in configs},  # whatever its directory is called
                "evaluation_ids": list(dict.fromkeys(config.evaluation_id for config in configs)),
            }
        )
    document = {
        "sweep": request.sweep.name,
        "artefact": request.sweep.artefact,
        "preset": request.preset,
        "mode": request.mode,
        "budget_flops": request.budget,
        "seeds": seeds,
        "sample_seeds": sample_seeds,
        "overrides": dict(request.overrides),
        "command": shlex.join(["mvar", *command]),
        "cells": cells,
    }
    write_document(path, document)
    return path


def unique(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Each run once: configs of several sweeps that are one run (and one evaluation) are one piece of work."""
    found: dict[tuple[str, str], RunConfig] = {}
    for config in configs:
        canonical = config.canonical()
        found.setdefault((identity.run_key(canonical), identity.evaluation_key(canonical)), config)
    return list(found.values())


def parse_overrides(settings: Iterable[str]) -> dict[str, str]:
    """`FIELD=VALUE` texts as a mapping; of a field that is given twice, under any of its names, the last counts.

    Raises:
        UserError: a text without `=`.
    """
    overrides: dict[str, str] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        name = name.strip()
        if not separator or not name:
            raise UserError(f"set: {quoted(setting)} is not FIELD=VALUE; allowed: e.g. train.steps=100")
        same = [other for other in overrides if current_name(RunConfig, other) == current_name(RunConfig, name)]
        for other in same:
            del overrides[other]
        overrides[name] = value
    return overrides
