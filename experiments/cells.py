"""Cells of a sweep: a config with its place in a table or figure and what the paper prints there.

Printed numbers are read from `experiments/paper/*.csv` and never typed in. A sweep asked for is kept as a manifest, the
list of runs that a report expects.
"""

import csv
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from experiments.store import Store, read_document, write_document
from mvar.config import RunConfig, override
from mvar.errors import UserError
from mvar.files import digest

PAPER = files("experiments") / "paper"
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
        UserError: it trains no step, so that there is nothing to make equal.
    """
    if not config.train.steps:
        raise UserError(
            "train.steps: 0 trains nothing, which no budget can make equal; allowed with --budget: 1 or more"
        )
    per_step = training_flops(config) / config.train.steps
    return override(config, {"train.steps": max(1, round(budget_flops / per_step))})


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
    def name(self) -> str:
        """The manifest's name: `SWEEP-PRESET-MODE`, and a digest where overrides or an own budget set it apart."""
        name = f"{self.sweep.name}-{self.preset}-{self.mode}"
        special = {"overrides": dict(self.overrides), "budget_flops": self.budget_flops}
        return f"{name}-{digest(special)}" if self.overrides or self.budget_flops is not None else name

    def cells(self) -> list[Cell]:
        """The cells, seeds not yet given."""
        return self.sweep.cells(self.config, self.mode, self.budget_flops)

    def configs(self) -> list[RunConfig]:
        """Every run of the request, cell by cell, seed by seed."""
        return [config for cell in self.cells() for config in with_seeds(cell.config, self.seeds, self.sample_seeds)]


def write_manifest(store: Store, request: Request, command: Sequence[str]) -> Path:
    """Store what was asked for; seeds of an earlier request of the same name are kept beside the new ones."""
    path = store.manifest_path(request.name)
    try:
        earlier = read_document(path)
    except FileNotFoundError:
        earlier = {}
    seeds = sorted({*earlier.get("seeds", []), *request.seeds})
    asked = request.sample_seeds or (request.config.sample.seed,)
    sample_seeds = sorted({*earlier.get("sample_seeds", []), *asked})
    budget = request.budget_flops
    if request.mode == BUDGET and budget is None:
        budget = float(training_flops(request.sweep.baseline(request.config)))
    cells = []
    for cell in request.cells():
        configs = with_seeds(cell.config, seeds, sample_seeds)
        cells.append(
            {
                "label": cell.label,
                "axes": dict(cell.axes),
                "printed": dict(cell.printed),
                "run_ids": list(dict.fromkeys(config.run_id for config in configs)),
                "evaluation_ids": list(dict.fromkeys(config.evaluation_id for config in configs)),
            }
        )
    document = {
        "sweep": request.sweep.name,
        "artefact": request.sweep.artefact,
        "preset": request.preset,
        "mode": request.mode,
        "budget_flops": budget,
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
    found = {(config.run_id, config.evaluation_id): config for config in configs}
    return list(found.values())


def parse_overrides(settings: Iterable[str]) -> dict[str, str]:
    """`FIELD=VALUE` texts as a mapping; a text without `=` is a `UserError`."""
    overrides = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name:
            raise UserError(f"set: {setting!r} is not FIELD=VALUE; allowed: e.g. train.steps=100")
        overrides[name] = value
    return overrides
