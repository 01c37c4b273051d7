"""What is asked for: an experiment on a preset, with seeds and settings, kept as a manifest.

A manifest is the list of runs that a report expects.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from mvar import layout, plugin_records, plugins
from mvar.config import RunConfig, identity, override
from mvar.errors import UserError, warn
from mvar.files import digest
from mvar.presets import PRESETS
from mvar.runs.documents import Damaged, Foreign, read_document, read_or_empty, write_document
from mvar.runs.experiment import BUDGET, STEPS, Cell, Experiment, training_flops
from mvar.runs.grid import Grid
from mvar.runs.store import Store

PATTERN = frozenset({"model.pattern", "model.replace", "model.replacement"})  # fields that make the mixers of layers


def with_seeds(config: RunConfig, seeds: Iterable[int], sample_seeds: Iterable[int] = ()) -> list[RunConfig]:
    """The config for each seed of initialisation and training, and for each one's sampling seeds (none: its own)."""
    sampled = list(sample_seeds) or [config.sample.seed]
    return [override(config, {"seed": seed, "sample.seed": other}) for seed in seeds for other in sampled]


@dataclass(frozen=True)
class Request:
    """A sweep as asked for on the command line."""

    sweep: Experiment
    preset: str
    config: RunConfig  # the preset with `overrides` applied
    seeds: tuple[int, ...] = (0,)
    overrides: Mapping[str, str] = field(default_factory=dict)
    mode: str = STEPS
    budget_flops: float | None = None
    sample_seeds: tuple[int, ...] = ()  # sets of images of one trained run; none: the config's own
    only: tuple[str, ...] = ()  # labels of the cells that are to be made; none: all

    @property
    def stem(self) -> str:
        """What the manifests of all requests of this sweep, preset and mode are called, but for their settings."""
        return f"{self.sweep.name}-{self.preset}-{self.mode}"

    @property
    def settings(self) -> str:
        """Digest of what is asked for, however it was spelled: the resulting config, seeds and execution aside."""
        return settings_of(self.config)

    @property
    def budget(self) -> float | None:
        """FLOPs that every cell's training spends; None in mode `steps`."""
        if self.mode == BUDGET and self.budget_flops is None:
            return float(training_flops(self.sweep.baseline(self.config)))
        return self.budget_flops

    @property
    def name(self) -> str:
        """The manifest's name: `stem`, and a digest where the resulting config or an own budget set it apart."""
        if self.settings == settings_of(PRESETS[self.preset]) and self.budget_flops is None:
            return self.stem
        return f"{self.stem}-{digest([self.settings, self.budget_flops])}"

    def cells(self) -> list[Cell]:
        """The cells, seeds not yet given: all of the table, also where few are to be made (`only`)."""
        return self.sweep.cells(self.config, self.mode, self.budget_flops)

    def is_chosen(self, cell: Cell) -> bool:
        """Whether a cell is to be made."""
        return not self.only or cell.label in self.only

    def configs(self) -> list[RunConfig]:
        """Every run that is to be made, cell by cell, seed by seed."""
        chosen = filter(self.is_chosen, self.cells())
        return [config for cell in chosen for config in with_seeds(cell.config, self.seeds, self.sample_seeds)]


def settings_of(config: RunConfig) -> str:
    """Digest of what a request is made of, however it was spelled: seeds and execution aside."""
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
            if settings_of(stored) == request.settings and found["budget_flops"] == request.budget:
                return path
    return own


def write_manifest(store: Store, request: Request, command: Sequence[str]) -> Path:
    """Store what was asked for; seeds of an earlier equal request are kept beside the new ones.

    Under a lock: of two commands that ask for other seeds at once neither loses its own.
    """
    (store.root / layout.SWEEPS).mkdir(parents=True, exist_ok=True)
    with FileLock(store.root / layout.SWEEPS / layout.LOCK):
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
    request = _with_earlier_axes(request, earlier)
    cells = [_cell(cell, store, request, earlier) for cell in request.cells()]
    seeds, sample_seeds = (sorted({n for cell in cells for n in cell[name]}) for name in ("seeds", "sample_seeds"))
    for cell in cells:  # what all have alike stands once
        for name, common in (("seeds", seeds), ("sample_seeds", sample_seeds)):
            if cell[name] in ([], common):
                del cell[name]
    document = {
        "sweep": request.sweep.name,
        "artefact": request.sweep.artefact,
        "preset": request.preset,
        "mode": request.mode,
        "budget_flops": request.budget,
        "seeds": seeds,
        "sample_seeds": sample_seeds,
        "overrides": dict(request.overrides),
        "cells": cells,
    }
    *before, last = _commands(shlex.join(["mvar", *command]), request, store, cells, earlier)
    document |= {"command": last} | ({"earlier_commands": before} if before else {})
    document |= {"grid": dict(request.sweep.grid)} if request.sweep.grid else {}
    if used := _plugins(request, earlier):
        document["plugins"] = used.document()
    write_document(path, document)
    return path


def _commands(
    now: str, request: Request, store: Store, cells: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any]
) -> list[str]:
    """The commands that together ask for all of it, in order: the last alone where it does so by itself."""
    before = [*earlier.get("earlier_commands", []), *([earlier["command"]] if "command" in earlier else [])]
    asked = [store.as_stored(config) for config in request.configs()]
    if not before or {(c.run_id, c.evaluation_id) for c in asked} >= _asked_for(cells):
        return [now]
    if _asked_for(cells) == _asked_for(earlier.get("cells", [])):
        return before  # it has added nothing
    return [*(command for command in before if command != now), now]


def _asked_for(cells: Iterable[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """The runs and their evaluations that cells of a manifest ask for."""
    return {(run, evaluation) for cell in cells for run in cell["run_ids"] for evaluation in cell["evaluation_ids"]}


def _plugins(request: Request, earlier: Mapping[str, Any]) -> plugin_records.Record | None:
    """What its runs are made of, and where its experiment stands, if a plug-in gives that."""
    before = plugin_records.Record.of_document(earlier.get("plugins", []))
    used = dict(plugin_records.used_by(cell.config for cell in request.cells()))
    if own := plugins.setter("experiments", request.sweep.name):
        used[plugin_records.SWEEP, request.sweep.name] = own
    return plugin_records.Record({**before.gave, **used}) if before.gave or used else None


def _with_earlier_axes(request: Request, earlier: Mapping[str, Any]) -> Request:
    """A grid with the values that an earlier request of it had besides: another command may just have added some."""
    if not (request.sweep.grid and earlier.get("grid")):
        return request
    name = request.sweep.name
    there, asked = Grid.of_document(name, earlier["grid"]), Grid.of_document(name, request.sweep.grid)
    whole, labels = there.extended(asked, request.config)
    return replace(request, sweep=whole.experiment(), only=request.only or labels)


def _cell(cell: Cell, store: Store, request: Request, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """A cell of the manifest, with the seeds that an earlier request of it asked for besides."""
    seeds, sample_seeds = _seeds_before(cell.label, earlier)
    if request.is_chosen(cell):
        seeds |= {*request.seeds}
        sample_seeds |= {*(request.sample_seeds or (request.config.sample.seed,))}
    configs = [store.as_stored(c) for c in with_seeds(cell.config, sorted(seeds), sorted(sample_seeds))]
    return {
        "label": cell.label,
        "axes": dict(cell.axes),
        "printed": dict(cell.printed),
        "run_ids": list(dict.fromkeys(config.run_id for config in configs)),
        "keys": {config.run_id: config.key for config in configs},  # whatever its directory is called
        "evaluation_ids": list(dict.fromkeys(config.evaluation_id for config in configs)),
        "seeds": sorted(seeds),
        "sample_seeds": sorted(sample_seeds),
    }


def _seeds_before(label: str, earlier: Mapping[str, Any]) -> tuple[set[int], set[int]]:
    """The seeds that an earlier request of a cell asked for; none where it asked for other cells alone."""
    before = next((cell for cell in earlier.get("cells", []) if cell["label"] == label), None)
    if (before is None and "grid" in earlier) or (before is not None and not before["run_ids"]):
        return set(), set()
    of_cell = before or {}
    seeds, sample_seeds = (of_cell.get(n, earlier.get(n, [])) for n in ("seeds", "sample_seeds"))
    return {*seeds}, {*sample_seeds}


def unique(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Each run once: configs of several sweeps that are one run (and one evaluation) are one piece of work."""
    found: dict[tuple[str, str], RunConfig] = {}
    for config in configs:
        canonical = config.canonical()
        found.setdefault((identity.run_key(canonical), identity.evaluation_key(canonical)), config)
    return list(found.values())
