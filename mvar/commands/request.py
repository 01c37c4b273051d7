"""What is asked for by every command that makes runs: sweeps, preset, seeds, settings, budget."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mvar.commands.options import File, InResults, Names, Settings, Word
from mvar.commands.plugged import Plugged
from mvar.errors import UserError, one_of, quoted, warn
from mvar.files import portable
from mvar.runs.launch.bounds import check_launched

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.runs.config_file import ConfigFile
    from mvar.runs.request import Request
    from mvar.runs.store import Store

DEFAULT_BUDGET = "baseline"
MAX_SEEDS, MAX_SETS = 1_000, 10_000  # training or sampling seeds of a command, and their product
MAX_SEED = 2**63 - 1  # of torch
NUMBER = re.compile(r"[-+]?(\d|\.\d|nan|inf).*|", re.IGNORECASE | re.DOTALL)  # what is meant as one, sound or not
ONE = "1"  # seed, the first: what a command without --seeds means
SEEDS = {"seed": "seeds", "sample.seed": "sample-seeds"}  # fields that have options of their own


@dataclass(frozen=True)
class Asked(Plugged, InResults):
    """What runs are asked for with: a preset, a file, a grid, seeds, settings."""

    preset: Word = ""
    """Where sizes, data and recipe come from, see `mvar config presets`; default: digits, or what --config says."""
    seeds: str = ONE
    """A count (3: seeds 0, 1, 2) or a list (0,4,7) of seeds of initialisation and training; default: seed 0, or what
    --config says."""
    set: Settings = ()
    """FIELD=VALUE ...: fields that differ from the preset, e.g. model.depth=4 train.steps=100."""
    sample_seeds: str = ONE
    """A count or a list of sampling seeds: sets of images that each trained run draws; they replicate no training."""
    config: File = ""
    """A .yaml, .toml or .json file, or a run's directory: what differs from a preset (`preset: digits` in it). Without
    a sweep it is one run. --set counts after it."""
    grid: Settings = ()
    """FIELD=VALUE,VALUE ...: every combination, as one table. A comma inside [ ], ( ) or quotes separates nothing."""
    name: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What a grid (or the run of --config) is called; alone: the one that was asked for by that name."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """LABEL of a row, e.g. "pattern=mamba, base_lr=1e-4": make only that one; may be given several times. What stands
    before the first comma, "pattern=mamba", is all rows that begin so."""
    baseline: Word = ""
    """LABEL of a grid's row that the others are compared with; default: the first."""

    def asked_fields(self) -> dict[str, Any]:
        """The fields that are set, by their dotted names of today."""
        from mvar.config import RunConfig
        from mvar.config.parsing import current_name, parse_overrides

        given = parse_overrides(setting for group in self.set for setting in group)
        return {current_name(RunConfig, name): value for name, value in given.items()}

    def requests_of(self, sweeps: Sequence[str], budget_text: str = "") -> "list[Request]":
        """Sweeps, or the grid, with all their settings.

        Raises:
            UserError: an unknown sweep, preset, field or row; a value that is not allowed; a file that is no config.
        """
        from mvar import plugin_records
        from mvar.commands.own_grids import Words, as_kept, check_no_runs, chosen, kept_grids, kept_request, own_name
        from mvar.runs.config_file import read_config_file
        from mvar.runs.experiment import BUDGET, STEPS, take_experiment
        from mvar.runs.grid import Grid
        from mvar.runs.request import Request
        from mvar.runs.store import Store

        store = Store(self.results)
        file = read_config_file(self.config) if self.config else None
        grid = [axis for group in self.grid for axis in group]
        kept = kept_grids(store)
        is_alone = file and not (sweeps or self.name or grid or self.preset or self.set)
        name, file = as_kept(file, kept) if file and is_alone else ("", file)
        name = name or own_name(sweeps, self.name, grid, file, kept)
        check_no_runs(store, () if name else sweeps)
        if self.baseline and not name:
            raise UserError("baseline: of a grid alone; allowed: with --grid and --name")
        mode, budget = (BUDGET, _budget(budget_text)) if budget_text else (STEPS, None)
        fields, before = self.asked_fields(), None
        if name and not (self.preset or file):
            before = kept_request(name, kept.get(name, ()), mode)
        for manifest in () if file else (before,) if before else kept.get(name, ()):
            plugin_records.check_request(f"name: {name!r}", manifest)
        if before and before["mode"] == BUDGET and not budget_text:
            mode, budget = BUDGET, before["budget_flops"]
        preset, overrides, config, seeds = self._base(sweeps, fields, file, before)
        draft = Request(
            Grid(name or "draft").experiment(), preset, config, *seeds[:1], overrides, mode, budget, seeds[1]
        )
        if name:
            words = Words(name, grid, self.baseline, kept.get(name, ()), file is not None, fields)
            requests = [words.request(store, draft, kept)]
        else:
            _check_pattern(sweeps, overrides)
            requests = [replace(draft, sweep=take_experiment(sweep)) for sweep in dict.fromkeys(sweeps)]
        return chosen(requests, self.only)

    def _base(
        self,
        sweeps: Sequence[str],
        fields: Mapping[str, Any],
        file: "ConfigFile | None",
        before: "Mapping[str, Any] | None",
    ) -> "tuple[str, dict[str, Any], RunConfig, tuple[tuple[int, ...], tuple[int, ...]]]":
        """Preset, what differs from it, the config, and the seeds: as typed, of the file, or as asked for before."""
        from mvar.config import override
        from mvar.presets import PRESETS

        for field, option in SEEDS.items():
            if field in fields:
                raise UserError(f"set: {field} is given by --{option}; allowed there: a count or a list such as 0,4,7")
        preset = before["preset"] if before else self._preset(file)
        given = _given(sweeps, file) if file else dict(before["overrides"]) if before else {}
        seeds = self._seeds(file, before or {})
        overrides = {**given, **fields}
        overrides |= {name: portable(overrides[name]) for name in _paths(overrides)}
        try:
            config = override(PRESETS[preset], overrides)
        except UserError:
            if file:
                file.applied(preset)  # says so if the mistake is the file's
            raise
        check_launched(config, overrides)
        return preset, overrides, config, seeds

    def _preset(self, file: "ConfigFile | None") -> str:
        from mvar.presets import PRESETS
        from mvar.runs.config_file import DEFAULT_PRESET

        if self.preset and self.preset not in PRESETS:
            raise one_of("preset", self.preset, PRESETS)
        return file.preset_beside(self.preset) if file else self.preset or DEFAULT_PRESET

    def _seeds(self, file: "ConfigFile | None", before: "Mapping[str, Any]") -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Training and sampling seeds, as typed; else those of a file, or of an earlier request of the same."""
        found = []
        for field, what in SEEDS.items():
            typed = self.seeds if field == "seed" else self.sample_seeds
            in_file = file.values.get(field) if file and typed == ONE else None
            if in_file is not None:
                if not re.fullmatch("[0-9]{1,18}", in_file):
                    assert file
                    raise UserError(f"{file.path}: {field}: {quoted(in_file)} is no seed; allowed: 0 or more")
                found.append((int(in_file),))
            else:
                kept = before.get(what.replace("-", "_")) if typed == ONE else None
                found.append(tuple(kept) if kept else seeds_of(what, typed))
        if len(found[0]) * len(found[1]) > MAX_SETS:
            asked = f"{len(found[0]):,} times {len(found[1]):,} sets of images a cell"
            raise UserError(f"seeds, sample-seeds: {asked}; allowed: at most {MAX_SETS:,}")
        return found[0], found[1]


@dataclass(frozen=True)
class Sweeps(Asked):
    """The runs of one or more sweeps."""

    sweeps: Names = ()
    """Sweeps: mixers (Table 6), layers (Figure 5), parameters (Table 5), rejection (Table 3), guidance,
    inter_scale, placement, scaling, FILE.py of one's own, or the name of a grid that was asked for. What they
    share is made once."""
    budget: Annotated[str, tyro.conf.arg(metavar="[FLOPS]", help_behavior_hint="")] = ""
    """Equal training FLOPs instead of equal steps; without a number, those of the baseline (VAR) at its steps."""
    dry_run: bool = False
    """Only print runs, parameters, FLOPs and estimated time."""

    def asked_sweeps(self) -> Sequence[str]:
        """The sweeps."""
        return self.sweeps

    def requests(self) -> "list[Request]":
        """What is asked for; as `requests_of`."""
        return self.requests_of(self.sweeps, self.budget)

    def planned(self) -> "tuple[list[Request], list[RunConfig], Store]":
        """The sweeps, their runs (each once) and where they are kept, once all is known that can go wrong at once.

        Raises:
            UserError: as `requests`; results that cannot be written; data that do not fit a run that is not done.
        """
        from mvar.runs.launch.datasets import DataSets
        from mvar.runs.launch.needed import check_files
        from mvar.runs.repair import restore
        from mvar.runs.request import unique
        from mvar.runs.store import Store, check_writable

        store = Store(self.results)
        data_sets = DataSets(store, self.dry_run)
        asked = self.requests()
        if not self.dry_run:
            check_writable(self.results)
        if "torch" not in sys.modules:  # seconds to load
            told = ", ".join(dict.fromkeys(request.sweep.name for request in asked))
            print(f"{told}: looking at what there is in {self.results}", file=sys.stderr, flush=True)
        requests = [data_sets.settled(request) for request in asked]
        configs = unique(store.as_stored(config) for request in requests for config in request.configs())
        left = [config for config in configs if not store.is_done(config)]
        check_files(left, store, self.dry_run)
        data_sets.check(left)
        if not self.dry_run:
            restore(store, configs)
        return requests, configs, store


def with_budget_value(arguments: list[str]) -> list[str]:
    """`--budget` may stand alone: then it means the baseline's FLOPs.

    Raises:
        UserError: what follows is meant as a number and is none that is allowed: -1, nan, an empty text.
    """
    result: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--budget":
            argument = f"--budget={left.pop(0) if left and NUMBER.fullmatch(left[0]) else DEFAULT_BUDGET}"
        if argument.startswith("--budget="):
            _budget(argument.removeprefix("--budget="))  # an empty one would be taken for none, -1 for an option
        result.append(argument)
    return result


def _given(sweeps: Iterable[str], file: "ConfigFile") -> dict[str, Any]:
    """Of a file what cells are made of: no seeds, and no pattern for sweeps that set it."""
    from mvar.runs.experiment import is_experiment, take_experiment
    from mvar.runs.request import PATTERN

    sets = [name for name in sweeps if not is_experiment(name) or take_experiment(name).sets_pattern]
    left_out = PATTERN if sets else set()
    if known := sorted(left_out & file.values.keys()):
        warn(f"{file.path}: {known[0]} is left out: sweep {sets[0]} sets the pattern itself")
    return {name: value for name, value in file.values.items() if name not in (*SEEDS, *left_out)}


def _check_pattern(sweeps: Iterable[str], overrides: Mapping[str, Any]) -> None:
    """A pattern of one's own is for a sweep that does not set it."""
    from mvar.runs.experiment import take_experiment
    from mvar.runs.request import PATTERN

    fixed = [found.name for found in map(take_experiment, sweeps) if found.sets_pattern]
    if fixed and (asked := sorted(PATTERN & overrides.keys())):
        raise UserError(f"set: {asked[0]}: sweep {fixed[0]} sets the pattern itself; allowed: with mixers alone")


def seeds_of(what: str, text: str) -> tuple[int, ...]:
    """Seeds as people type them: a count, or a list.

    Raises:
        UserError: another text, too large or too many; names `what`.
    """
    allowed = "allowed: a count of 1 or more, or a list such as 0,4,7"
    if not re.fullmatch(r"[0-9]{1,19}( *, *[0-9]{1,19})*,?", text.strip()):
        raise UserError(f"{what}: {quoted(text)} is neither; {allowed}")
    numbers = tuple(dict.fromkeys(int(number) for number in text.strip().rstrip(",").split(",")))
    is_list = "," in text
    if max(numbers) > MAX_SEED:
        raise UserError(f"{what}: {max(numbers)} is too large; allowed: seeds up to {MAX_SEED}")
    if not is_list and numbers[0] < 1:
        raise UserError(f"{what}: {text} is no count; {allowed}")
    if (count := len(numbers) if is_list else numbers[0]) > MAX_SEEDS:
        raise UserError(f"{what}: {count:,} of them; allowed: at most {MAX_SEEDS:,}")
    return numbers if is_list else tuple(range(count))


def _paths(overrides: Mapping[str, Any]) -> set[str]:
    """Those that name files: jobs read them from another working directory."""
    from mvar.config.parsing import NO_VALUE, PATHS

    named = PATHS & overrides.keys()
    return {name for name in named if overrides[name] and overrides[name].strip() not in ("", *NO_VALUE)}


def _budget(text: str) -> float | None:
    if text == DEFAULT_BUDGET:
        return None
    try:
        budget = float(text)
    except ValueError:
        budget = 0.0
    if not 0 < budget < float("inf"):
        allowed = "a positive number such as 1e15, or none"
        raise UserError(f"budget: {quoted(text)} is no number of FLOPs; allowed: {allowed}")
    return budget
