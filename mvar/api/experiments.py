"""`mvar.experiment`: a grid of runs with its table, in a line."""

from collections.abc import Callable, Mapping
from typing import Any, overload

from mvar.config import RunConfig, override
from mvar.runs.experiment import Cell, Experiment

Rows = Mapping[str, Mapping[str, Any] | RunConfig]  # label -> fields that differ from the preset, or a whole config
Build = Callable[[RunConfig], Rows]


@overload
def experiment(name: str, rows: Rows | Build, **options: Any) -> Experiment: ...
@overload
def experiment(name: str, rows: None = None, **options: Any) -> Callable[[Build], Experiment]: ...
def experiment(
    name: str, rows: Rows | Build | None = None, *, artefact: str = "", summary: str = "", **options: Any
) -> Experiment | Callable[[Build], Experiment]:
    """A grid of runs and its table. In a file as `EXPERIMENT = ...`, `mvar run FILE.py` makes it.

    Examples:
        >>> import mvar
        >>> EXPERIMENT = mvar.experiment("widths", {"narrow": {"model.width": 32}, "wide": {"model.width": 128}})
        >>> [cell.config.model.width for cell in EXPERIMENT.cells(mvar.PRESETS["digits"])]
        [32, 128]

    Where rows rest on the preset, a function gives them:

        >>> @mvar.experiment("depths", artefact="Depths")
        ... def EXPERIMENT(config):
        ...     return {f"depth {n}": {"model.depth": n} for n in (config.model.depth // 2, config.model.depth)}
        >>> [cell.label for cell in EXPERIMENT.cells(mvar.PRESETS["digits"])]
        ['depth 4', 'depth 8']

    Args:
        name: for the command line and the file of its requests.
        rows: by label, what each differs in from the preset; or a function of the preset that gives that. None: what is
            returned decorates such a function.
        artefact: heading of the table; empty: the name.
        summary: its rows in a few words, for `--help`.
        options: others of `Experiment`: `columns`, `notes`, `compares`, ...

    Raises:
        UserError: no such name; when cells are made, an unknown field.
    """

    def made(found: Rows | Build) -> Experiment:
        def build(config: RunConfig) -> list[Cell]:
            given = found(config) if callable(found) else found
            return [_cell(label, row, config) for label, row in given.items()]

        return Experiment(name, artefact or name, summary or name, build, **options)

    return made if rows is None else made(rows)


def _cell(label: str, row: Mapping[str, Any] | RunConfig, config: RunConfig) -> Cell:
    """A row; what it differs in can be a column, by its dotted name."""
    return Cell(label, row) if isinstance(row, RunConfig) else Cell(label, override(config, row), dict(row))
