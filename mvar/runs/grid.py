"""A grid of one's own: the product of some fields' values as one experiment, of which its requests keep everything.

`mvar run --grid model.pattern=mamba,intra train.base_lr=1e-4,3e-4 --name mine`. No file stands behind it: what a
manifest keeps of it (`Grid.document`) makes the experiment again. A grid without axes is a single run.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from mvar.config import RunConfig, override
from mvar.config.parsing import NO_VALUE, PATHS, current_name
from mvar.errors import UserError, quoted
from mvar.files import portable
from mvar.runs import columns
from mvar.runs.experiment import Cell, Experiment, Placed, find_experiment, is_experiment

# What rows of one table may differ in; other data, metrics or numbers of images are never compared.
SECTIONS = ("tokenizer", "model", "train", "sample")
GIVEN_BY = {"seed": "--seeds", "sample.seed": "--sample-seeds"}
MAX_CELLS = 10_000
EXAMPLE = "train.base_lr=1e-4,3e-4"
PATTERNS = ("model.replace", "model.replacement")  # no fields: they make the pattern
OPENING, CLOSING, QUOTES = "[(", "])", "\"'"
COLUMNS = (columns.name("setting"), columns.FID, *columns.SCORES, *columns.COSTS)


@dataclass(frozen=True)
class Axis:
    """A field and the values that it takes, as they were typed."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A name, what varies, and the label of the cell that the others are compared with (empty: the first)."""

    name: str
    axes: tuple[Axis, ...] = ()
    baseline: str = ""

    def labels(self) -> list[str]:
        """One a cell, in order: what varies and nothing else, e.g. `pattern=mamba, base_lr=1e-4`."""
        return [self._label(values) for values in self._product()]

    def document(self) -> dict[str, Any]:
        """What a manifest keeps, as JSON values; `of_document` reads it."""
        return {"axes": [{"field": a.field, "values": list(a.values)} for a in self.axes], "baseline": self.baseline}

    @classmethod
    def of_document(cls, name: str, values: Mapping[str, Any]) -> "Grid":
        """The grid that a manifest keeps."""
        axes = tuple(Axis(axis["field"], tuple(axis["values"])) for axis in values["axes"])
        return cls(name, axes, values["baseline"])

    def with_baseline(self, label: str) -> "Grid":
        """Compared with another cell; an unknown label is a `UserError` that lists them, none leaves it as it is."""
        if label and label not in self.labels():
            raise UserError(f"baseline: {quoted(label)} is no row of it; allowed: {'; '.join(self.labels())}")
        return replace(self, baseline=label) if label else self

    def extended(self, other: "Grid", config: RunConfig) -> tuple["Grid", tuple[str, ...]]:
        """With the values of another grid of the same axes besides, and the labels of the other's cells in it.

        Args:
            other: what is asked for now.
            config: the base of both, by which two spellings of one value are known.

        Raises:
            UserError: other axes; names both.
        """
        mine, theirs = [axis.field for axis in self.axes], [axis.field for axis in other.axes]
        if sorted(mine) != sorted(theirs):
            told = f"name: {self.name!r} is a {_told(mine)}, and this is a {_told(theirs)}"
            raise UserError(f"{told}; allowed: the same fields with more values, another --name, or mvar forget first")
        axes, chosen = [], []
        for axis in self.axes:
            spelled = {_meaning(config, axis.field, value): value for value in axis.values}
            given = next(asked for asked in other.axes if asked.field == axis.field)
            chosen.append([spelled.setdefault(_meaning(config, axis.field, v), v) for v in given.values])
            axes.append(Axis(axis.field, tuple(spelled.values())))
        whole = Grid(self.name, tuple(axes), self.baseline)
        return whole.with_baseline(other.baseline), tuple(whole._label(values) for values in product(*chosen))

    def experiment(self) -> Experiment:
        """The experiment: a row a cell, no row of the paper's."""
        first = self.baseline or self.labels()[0]

        def against(cell: Placed, cells: Sequence[Placed]) -> Placed:
            return next((other for other in cells if other.label == first), cells[0])

        def baseline(config: RunConfig) -> RunConfig:
            return next(cell.config for cell in self._cells(config) if cell.label == first)

        return Experiment(
            self.name,
            "Grid" if self.axes else "Run",
            f"{len(self.labels())} cells: {', '.join(axis.field for axis in self.axes)}",
            self._cells,
            columns=COLUMNS,
            baseline=baseline,
            against=against,
            compares="nothing",
            varied=[axis.field for axis in self.axes if axis.field.startswith("sample.")],
            figures=(*["guidance"] * self._has_guidance, "samples", "likelihood", "loss", "overfitting"),
            chooses=self._has_guidance,
            grid=self.document(),
            place=5,
        )

    @property
    def _has_guidance(self) -> bool:
        """Whether rows differ in the strength of guidance, which is a curve of each model."""
        return any(axis.field == "sample.cfg_scale" and len(axis.values) > 1 for axis in self.axes)

    def _product(self) -> list[tuple[str, ...]]:
        return list(product(*(axis.values for axis in self.axes)))

    def _cells(self, config: RunConfig) -> list[Cell]:
        fields = [axis.field for axis in self.axes]
        cells = []
        for values in self._product():
            varied = dict(zip(fields, values, strict=True))
            try:
                cells.append(Cell(self._label(values), override(config, varied), varied))
            except UserError as error:
                raise UserError(f"grid: {error}") from None
        return cells

    def _label(self, values: Sequence[str]) -> str:
        names = short_names([axis.field for axis in self.axes])
        parts = [f"{name}={_shown(axis, value)}" for name, axis, value in zip(names, self.axes, values, strict=True)]
        return ", ".join(parts) or self.name


def _told(fields: Sequence[str]) -> str:
    return f"grid of {', '.join(fields)}" if fields else "single run"


def _shown(axis: Axis, value: str) -> str:
    """A value in a label: of files their names, where these tell them apart."""
    names = {Path(other).name for other in axis.values}
    return Path(value).name if axis.field in PATHS and len(names) == len(axis.values) else value


def short_names(fields: Sequence[str]) -> list[str]:
    """The shortest ends of dotted names that tell them apart: `steps`, or `train.steps` beside `tokenizer.train.steps`.

    A name that is the end of another one stays whole.
    """
    found = []
    for field in fields:
        parts, others = field.split("."), [f".{other}" for other in fields if other != field]
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        found.append(next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), field))
    return found


def experiment_of(manifest: Mapping[str, Any]) -> Experiment:
    """The experiment of a manifest: kept in it, or known by its name.

    Raises:
        UserError: as `find_experiment`; what it keeps is no grid.
    """
    kept = manifest.get("grid")
    return Grid.of_document(manifest["sweep"], kept).experiment() if kept else find_experiment(manifest["sweep"])


def check_name(name: str) -> str:
    """A name for a grid or a run of one's own.

    Raises:
        UserError: it is no name, or one of ours.
    """
    if not re.fullmatch("[a-z][a-z0-9_-]{0,31}", name):
        raise UserError(
            f"name: {quoted(name)} is none; allowed: up to 32 small letters, digits, - and _, a letter first"
        )
    if is_experiment(name):
        raise UserError(f"name: {name!r} is the name of an experiment that is there; allowed: one of your own")
    return name


def read_grid(words: Iterable[str], config: RunConfig) -> tuple[Axis, ...]:
    """Axes as people type them: `FIELD=VALUE,VALUE`.

    Args:
        words: one an axis. A comma separates values, but not inside `[ ]`, `( )` or quotes; quotes are taken off.
        config: what the cells are made of.

    Raises:
        UserError: another text, an unknown field, one that is given twice or that no row may differ in, no value or one
            value twice; one line that names the axis.
    """
    axes: list[Axis] = []
    for word in words:
        name, separator, text = word.partition("=")
        field = current_name(RunConfig, name.strip())
        if not separator or not field:
            raise UserError(f"grid: {quoted(word)} is not FIELD=VALUE,VALUE; allowed: e.g. {EXAMPLE}")
        if field in (axis.field for axis in axes):
            raise UserError(f"grid: {field} is given twice; allowed: once, with all of its values")
        _check_field(field, config)
        axes.append(Axis(field, _values(field, text, config)))
    if (count := prod(len(axis.values) for axis in axes)) > MAX_CELLS:
        raise UserError(f"grid: {count:,} cells; allowed: at most {MAX_CELLS:,}")
    return tuple(axes)


def _check_field(field: str, config: RunConfig) -> None:
    if field in GIVEN_BY:
        raise UserError(f"grid: {field} is given by {GIVEN_BY[field]}; allowed there: a count or a list such as 0,4,7")
    section = field.partition(".")[0]
    if section in RunConfig.model_fields and section not in SECTIONS:
        allowed = ", ".join(SECTIONS)
        raise UserError(f"grid: {field}: rows of one table do not differ in {section}; allowed: fields of {allowed}")
    try:
        override(config, {field: ""})  # no field takes an empty text: what is said of it tells whether there is one
    except UserError as error:
        if f"{field}: has no value" not in str(error) and field not in PATTERNS:
            raise UserError(f"grid: {error}") from None


def _values(field: str, text: str, config: RunConfig) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for value in split_values(field, text):
        if field in PATHS and value not in NO_VALUE:
            value = portable(value)
        other = found.setdefault(_meaning(config, field, value), value)
        if other is not value:
            raise UserError(f"grid: {field}: {quoted(other)} and {quoted(value)} are one value; allowed: each once")
    return tuple(found.values())


def split_values(field: str, text: str) -> list[str]:
    """The values of an axis: `a,b`, `[1,2,3],[1,2,4]`, `"0,3",first:4`.

    Raises:
        UserError: no value, or a bracket or a quote that is open at the end.
    """
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
            values[-1] += "" if not quote else character
        elif character in QUOTES:
            quote = character
        elif character == "," and not depth:
            values.append("")
        else:
            depth += (character in OPENING) - (character in CLOSING)
            values[-1] += character
    if quote or depth:
        what = f"quote {quote}" if quote else "bracket"
        raise UserError(f"grid: {field}: {quoted(text)} has a {what} without its other half; allowed: e.g. [1,2],[1,3]")
    values = [value.strip() for value in values]
    if not all(values):
        raise UserError(f"grid: {field}: {quoted(text)} has an empty value; allowed: FIELD=VALUE,VALUE, e.g. {EXAMPLE}")
    return values


def _meaning(config: RunConfig, field: str, text: str) -> str:
    """One text for all spellings of a value; of one that the base alone does not allow, its own."""
    try:
        node: Any = override(config, {field: text}).model_dump(mode="json")
    except UserError:
        return text
    for part in ("model.pattern" if field in PATTERNS else field).split("."):
        node = node.get(part, text) if isinstance(node, dict) else text
    return json.dumps(node)
