"""Trained runs by their ids, sampled with every value of some settings: one table, kept as a grid.

What the runs differ in (a pattern, a depth) are axes of the grid too, and runs that differ in nothing but their seed
replicate each other.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mvar.errors import UserError
from mvar.files import digest

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.runs.request import Request
    from mvar.runs.store import RunDirectory, Store

NOT_OF_TRAINING = ("seed", "sample.", "evaluation.", "runtime.")  # what the first run's are taken of, or is no axis


def requests_of_runs(
    store: "Store",
    runs: "Sequence[RunDirectory]",
    grid: Sequence[str],
    fields: Mapping[str, Any],
    sample_seeds: Sequence[int],
    name: str,
) -> "list[Request]":
    """One request a row of trained runs, all of one grid; each has the seeds that there are of it.

    Args:
        store: where they lie.
        runs: one or more; sampling and evaluation are as in the first one.
        grid: axes of the sampling, as `--grid` takes them.
        fields: that differ from the first run's sampling and evaluation.
        sample_seeds: sets of images a run.
        name: of the grid; empty: one that the runs and the axes give.

    Raises:
        UserError: a run that is not trained; one of other data, whose rows stand in no table; as `Words.request`.
    """
    from dataclasses import replace

    from mvar.commands.own_grids import Words, kept_grids
    from mvar.config import override
    from mvar.presets import PRESETS
    from mvar.runs.config_file import read_config_file
    from mvar.runs.grid import Grid, check_name
    from mvar.runs.launch.evaluation import evaluation_of
    from mvar.runs.request import Request

    configs = [evaluation_of(store, run, fields) for run in dict.fromkeys(runs)]
    file = read_config_file(str(runs[0].path))
    overrides = {field: value for field, value in file.values.items() if field not in ("seed", "sample.seed")}
    config = override(PRESETS[file.preset], overrides := {**overrides, **fields})
    words = [*_axes(configs), *grid]
    fallback = f"guidance-{digest([sorted(c.key for c in configs), sorted(w.partition('=')[0] for w in words)])}"
    name = check_name(name or fallback)
    kept = kept_grids(store)
    draft = Request(Grid(name).experiment(), file.preset, config, (0,), overrides, sample_seeds=tuple(sample_seeds))
    whole = Words(name, words, "", kept.get(name, ()), is_file=False).request(store, draft, kept)
    seeds: dict[str, list[int]] = {}  # of each cell that is a row's of some run
    for config in configs:
        for cell in filter(whole.is_chosen, whole.cells()):
            if override(cell.config, {"seed": config.seed}).key == config.key:
                seeds.setdefault(cell.label, []).append(config.seed)
    rows: dict[tuple[int, ...], list[str]] = {}
    for label, of_cell in seeds.items():
        rows.setdefault(tuple(sorted(of_cell)), []).append(label)
    return [replace(whole, seeds=of_rows, only=tuple(labels)) for of_rows, labels in rows.items()]


def _axes(configs: "Sequence[RunConfig]") -> list[str]:
    """What the runs differ in, as words of `--grid`."""
    from mvar.config.allowed import typed
    from mvar.runs.config_file import differences
    from mvar.runs.grid import SECTIONS

    found = [differences(configs[0], config) for config in configs]
    fields = dict.fromkeys(field for values in found for field in values if not field.startswith(NOT_OF_TRAINING))
    for field in fields:
        if field.partition(".")[0] not in SECTIONS:
            raise UserError(f"run: the runs differ in {field}; allowed: runs of one table, which has the same data")
    words = []
    for field in fields:
        values = dict.fromkeys(typed(_value(config, field)) for config in configs)
        words.append(f"{field}=" + ",".join(f'"{value}"' for value in values))
    return words


def _value(config: "RunConfig", field: str) -> Any:
    """The JSON value of a dotted field; None where this config has no such section."""
    node: Any = config.model_dump(mode="json")
    for part in field.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
