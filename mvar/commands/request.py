"""What is asked for by every command that makes runs: sweeps, preset, seeds, settings, budget."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mvar.commands.plugged import Plugged
from mvar.errors import UserError, one_of, quoted
from mvar.files import portable
from mvar.runs.launch.bounds import check_launched

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.runs.request import Request
    from mvar.runs.store import Store

DEFAULT_BUDGET = "baseline"
MAX_SEEDS, MAX_SETS = 1_000, 10_000  # training or sampling seeds of a command, and their product
MAX_SEED = 2**63 - 1  # of torch
NUMBER = re.compile(r"[-+]?(\d|\.\d|nan|inf).*|", re.IGNORECASE | re.DOTALL)  # what is meant as one, sound or not
PATTERN = {"model.pattern", "model.replace", "model.replacement"}


@dataclass(frozen=True)
class Sweeps(Plugged):
    """The runs of one or more sweeps."""

    sweeps: tyro.conf.Positional[tuple[str, ...]]
    """Sweeps: mixers (Table 6), layers (Figure 5), parameters (Table 5), rejection (Table 3), guidance,
    scaling, or FILE.py of one's own. What they share is made once."""
    preset: str = "digits"
    """Where sizes, data and recipe come from, see mvar/presets.py."""
    seeds: str = "1"
    """A count (3: seeds 0, 1, 2) or a list (0,4,7) of seeds of initialisation and training."""
    set: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """FIELD=VALUE ...: fields that differ from the preset, e.g. model.depth=4 train.steps=100."""
    budget: Annotated[str, tyro.conf.arg(metavar="[FLOPS]")] = ""
    """Equal training FLOPs instead of equal steps; without a number, those of VAR at the preset's steps."""
    sample_seeds: str = "1"
    """A count or a list of sampling seeds: sets of images that each trained run draws; they replicate no training."""
    dry_run: bool = False
    """Only print runs, parameters, FLOPs and estimated time."""
    results: Path = Path("results")
    """Where runs are kept."""

    def requests(self) -> "list[Request]":
        """The sweeps with all their settings.

        Raises:
            UserError: an unknown sweep, preset or field; a value that is not allowed.
        """
        from mvar.config import RunConfig, override
        from mvar.config.parsing import NO_VALUE, PATHS, current_name, parse_overrides
        from mvar.presets import PRESETS
        from mvar.runs.experiment import BUDGET, STEPS, experiment_names, take_experiment
        from mvar.runs.request import Request

        if not self.sweeps:
            raise UserError(f"sweep: none given; allowed: {', '.join(experiment_names())}")
        if self.preset not in PRESETS:
            raise one_of("preset", self.preset, PRESETS)
        overrides = parse_overrides(setting for group in self.set for setting in group)
        overrides = {current_name(RunConfig, name): value for name, value in overrides.items()}
        # fields that name files: jobs read them from another working directory
        paths = {name for name in PATHS & overrides.keys() if overrides[name].strip() not in ("", *NO_VALUE)}
        overrides |= {name: portable(overrides[name]) for name in paths}
        if "seed" in overrides:
            raise UserError("set: seed is given by --seeds; allowed there: a count or a list such as 0,4,7")
        if "sample.seed" in overrides:
            raise UserError("set: sample.seed is given by --sample-seeds; allowed there: a count or a list such as 0,4")
        config = override(PRESETS[self.preset], overrides)
        check_launched(config, overrides)
        fixed = [found.name for found in map(take_experiment, self.sweeps) if found.sets_pattern]
        if fixed and (asked := sorted(PATTERN & overrides.keys())):
            raise UserError(f"set: {asked[0]}: sweep {fixed[0]} sets the pattern itself; allowed: with mixers alone")
        mode, budget = (BUDGET, _budget(self.budget)) if self.budget else (STEPS, None)
        seeds, sample_seeds = _seeds("seeds", self.seeds), _seeds("sample-seeds", self.sample_seeds)
        if len(seeds) * len(sample_seeds) > MAX_SETS:
            asked = f"{len(seeds):,} times {len(sample_seeds):,} sets of images a cell"
            raise UserError(f"seeds, sample-seeds: {asked}; allowed: at most {MAX_SETS:,}")
        return [
            Request(take_experiment(name), self.preset, config, seeds, overrides, mode, budget, sample_seeds)
            for name in dict.fromkeys(self.sweeps)
        ]

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
        requests = [data_sets.settled(request) for request in self.requests()]
        if not self.dry_run:
            check_writable(self.results)
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


def _seeds(what: str, text: str) -> tuple[int, ...]:
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
