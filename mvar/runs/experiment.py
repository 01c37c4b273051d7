"""What an experiment is: all of one table or figure of a paper, from the runs it needs to the sentences under it.

Printed numbers are read from `experiments/paper/*.csv` and never typed in.
"""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from mvar import plugins, shipped
from mvar.config import RunConfig, override
from mvar.errors import UserError, one_of, quoted, warn_once
from mvar.runs import columns
from mvar.runs.columns import Column

MAX_STEPS = 10**12  # that a budget may amount to: years on any machine
COUNTS = 0.013  # of a FID: smaller differences change no conclusion, however surely they are there
STEPS, BUDGET = "steps", "budget"  # the modes: equal steps (the paper's way), equal training FLOPs


@dataclass(frozen=True)
class Cell:
    """One row of a table or point of a figure, before seeds are given."""

    label: str
    config: RunConfig
    axes: Mapping[str, Any] = field(default_factory=dict)
    printed: Mapping[str, Any] = field(default_factory=dict)  # as the paper prints it; empty where it prints nothing


class Placed(Protocol):
    """What a row is known by: of a `Cell`, and of the rows that a report reads back."""

    @property
    def label(self) -> str: ...
    @property
    def axes(self) -> Mapping[str, Any]: ...


def var(config: RunConfig) -> RunConfig:
    """VAR: global attention in every layer, at the config's size."""
    return override(config, {"model.pattern": "global"})


def first_row(cell: Placed, cells: Sequence[Placed]) -> Placed:
    """What a row is compared with: the first one, which is VAR in the paper's tables."""
    return cells[0]


@dataclass(frozen=True)
class Experiment:
    """A grid of runs and the table that they fill.

    Args:
        name: for the command line and the file of its requests.
        artefact: what it reproduces, e.g. "Table 6".
        summary: its rows in a few words, for `--help`.
        build: the cells, given a preset with its overrides.
        columns: of the table, see `mvar.runs.columns`.
        baseline: the run whose training FLOPs are the default budget.
        against: which row each row's differences are from.
        compares: `pairs`: rows stand beside each other, every two are compared; `trend`: rows are points along an
            axis; `rules`: rows are ways to choose layers (axes `rule`, `layers_replaced`), and those that choose as
            many are compared; `sizes`: rows are sizes of models, of which nothing is said in a sentence.
        notes: sentences under the table that no number decides.
        pair: two rows that the report's first screen tells of, e.g. VAR and M-VAR.
        along: what varies along the axis of a `trend`, in words.
        relative_to: the row that cost and time are relative to (`columns.RELATIVE`).
        varied: settings that rows may differ in and are compared all the same.
        figures: scripts of `analysis/` that draw it, in order.
        sets_pattern: False: `--set model.pattern=...` adds a row of one's own.
        of_paper: shown with dashes where nobody has asked for it.
        chooses: the best way to draw a model's images is chosen on the first sampling seed: where there are several
            its numbers are in no cell.
        counts: the smallest difference of FID that counts, as a share of the baseline's.
        place: where it stands in the report, small numbers first.
        grid: of one that no file has (`mvar.runs.grid`): what its requests keep of it.
    """

    name: str
    artefact: str
    summary: str
    build: Callable[[RunConfig], list[Cell]]
    columns: Sequence[Column] = (columns.name("row"), columns.FID, *columns.SCORES, *columns.COSTS)
    baseline: Callable[[RunConfig], RunConfig] = var
    against: Callable[[Any, Sequence[Any]], Any] = first_row
    compares: Literal["pairs", "trend", "rules", "sizes", "nothing"] = "pairs"
    notes: Sequence[str] = ()
    pair: tuple[str, str] | None = None
    along: str = ""
    relative_to: str = ""
    varied: Sequence[str] = ()
    figures: Sequence[str] = ()
    sets_pattern: bool = True
    of_paper: bool = False
    chooses: bool = False
    counts: float = COUNTS
    place: int = 50
    grid: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_-]{0,31}", self.name):  # it begins the names of files
            raise UserError(
                f"experiment: {self.name!r:.60} is no name; allowed: up to 32 small letters, digits, - and _"
            )

    def cells(self, config: RunConfig, mode: str = STEPS, budget_flops: float | None = None) -> list[Cell]:
        """The cells for a preset.

        Args:
            config: the preset, overrides applied.
            mode: `steps`: every cell trains as many steps as the preset; `budget`: steps are chosen so that every
                cell spends the same training FLOPs.
            budget_flops: the budget; None: what the baseline spends at the preset's steps.
        """
        cells = self._built(config)
        if mode == STEPS:
            return cells
        budget = training_flops(self.baseline(config)) if budget_flops is None else budget_flops
        return [replace(cell, config=at_budget(cell.config, budget)) for cell in cells]

    def _built(self, config: RunConfig) -> list[Cell]:
        try:
            cells = list(self.build(config))
        except UserError as error:
            raise UserError(str(error) if self.grid else f"experiment {self.name}: {error}") from None
        except Exception as error:  # of a user's own function
            told = plugins.blamed(error) or f"{type(error).__name__}: {error}"
            raise UserError(f"experiment {self.name}: no cells ({told})") from error
        if not cells or not all(isinstance(cell, Cell) for cell in cells):
            raise UserError(f"experiment {self.name}: no cells; allowed: a `build` that gives one `Cell` or more")
        for cell in cells:
            self._check(cell)
        return cells

    def _check(self, cell: Cell) -> None:
        """Refuse a config that `model_copy`, which checks nothing, has made wrong."""
        try:
            override(cell.config, {})
        except UserError as error:
            raise UserError(f"experiment {self.name}: cell {cell.label!r:.60}: {error}") from None
        except Exception:
            told = f"its config is {quoted(cell.config, 60)}"
            raise UserError(f"experiment {self.name}: cell {cell.label!r:.60}: {told}; allowed: a RunConfig") from None


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
    with (shipped.folder("experiments") / "paper" / f"{table}.csv").open(newline="") as file:
        return [{key: _number(text) for key, text in row.items() if text} for row in csv.DictReader(file)]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def experiments(complain: Callable[[str], None] = warn_once) -> list[Experiment]:
    """Ours, in the order of the report. A file that cannot be loaded is complained of, and left out."""
    found = []
    for name in shipped.names("experiments"):
        try:
            found.append(find_experiment(name))
        except UserError as error:
            complain(str(error))
    return sorted(found, key=lambda experiment: (experiment.place, experiment.name))


def experiment_names() -> list[str]:
    """What `mvar run NAME` accepts: the first one of the report, then the others by name."""
    names = shipped.names("experiments")
    first = next((experiment.name for experiment in experiments()), None)
    return sorted(names, key=lambda name: (name != first, name))


def find_experiment(name: str) -> Experiment:
    """The experiment of a name: of a file that a user has named (`take_experiment`), or of one of ours.

    A path is no name: what a results directory holds must not say which file is run.

    Raises:
        UserError: an unknown name; a file that cannot be loaded, or has no `EXPERIMENT`.
    """
    if own := _own(name):
        return own
    if name not in shipped.names("experiments"):
        raise one_of("sweep", name, experiment_names())
    return shipped.read("experiments", shipped.find("experiments", name), Experiment)


def is_experiment(name: str) -> bool:
    """Whether there is an experiment of that name."""
    return bool(_own(name)) or name in shipped.names("experiments")


def _own(name: str) -> Experiment | None:
    """The experiment of a name that a plug-in has."""
    return next((one for one in plugins.set_by("experiments", Experiment) if one.name == name), None)


def take_experiment(given: str) -> Experiment:
    """The experiment of a name, or of a file that the user names by its path; it is found by its own name from then on.

    Raises:
        UserError: as `find_experiment`; no such file; a file of the user's own whose experiment has a name of ours.
    """
    if "/" not in given and not given.endswith(".py"):
        return find_experiment(given)
    path = shipped.find("experiments", given)
    ours = shipped.folder("experiments")
    if path.resolve().parent == ours.resolve():
        return shipped.read("experiments", path, Experiment)
    plugins.load(given)  # it may register what its runs are made of, which workers and jobs are to know too
    return shipped.read("experiments", path.absolute(), Experiment)
