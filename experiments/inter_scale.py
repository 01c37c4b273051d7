"""Between scales: is Mamba the right partner of `intra`, or does any cheap mixer do?

`intra+X` for every mixer X that carries scales, yours among them (`--plugin`), beside VAR and `intra` alone: at the
preset's width, and as wide as makes each about as large as M-VAR. VAR as large as M-VAR and M-VAR as small as VAR are
among them. Equal training FLOPs in place of equal steps: `--budget`. The report tells each at its own guidance too, of
what is there: ask once more with another `sample.cfg_scale`, which trains nothing, and for two sampling seeds or more.

    mvar run inter_scale --seeds 3 --sample-seeds 2
    mvar run inter_scale --seeds 3 --sample-seeds 2 --set sample.cfg_scale=0
"""

from collections.abc import Sequence
from math import gcd, sqrt
from typing import Any

from mvar import Cell, Experiment, RunConfig, columns, inter_scale_mixers, num_params, override

VAR, INTRA, MVAR = "global", "intra", "intra+mamba"
SAME_WIDTH, AS_MVAR, AS_VAR = "the preset's width", "M-VAR's parameters", "VAR's parameters"
COLUMNS = (
    columns.name("layers, size"),
    columns.WIDTH,
    columns.PARAMETERS,
    columns.NLL,
    columns.FID,
    *columns.KID,
    columns.COPIES,
    *columns.SPENT,
)


def of_width(config: RunConfig, width: int) -> RunConfig:
    """The config at another width, with as many heads."""
    headdim = gcd(config.model.mamba.headdim, width * config.model.mamba.expand)
    return override(config, {"model.width": width, "model.mamba.headdim": headdim})


def as_large_as(config: RunConfig, target: int) -> RunConfig:
    """The config at the width whose number of parameters is nearest to a target; heads get two channels at a time."""
    step, found = 2 * config.model.num_heads, config
    for _ in range(2):  # parameters grow with the square of the width, nearly
        guess = int(found.model.width * sqrt(target / num_params(found.model, found.token_space))) // step
        tried = [of_width(config, step * count) for count in range(max(1, guess - 1), guess + 3)]
        found = min(tried, key=lambda one: abs(num_params(one.model, one.token_space) - target))
    return found


def cells(config: RunConfig) -> list[Cell]:
    """Every model at the preset's width, then every other one as large as M-VAR, then M-VAR as small as VAR."""
    models = [VAR, INTRA, *(f"{INTRA}+{name}" for name in inter_scale_mixers())]
    ours = {pattern: override(config, {"model.pattern": pattern}) for pattern in models}
    sizes = {name: num_params(ours[name].model, config.token_space) for name in (VAR, MVAR)}
    found = [_cell(pattern, of_preset, SAME_WIDTH) for pattern, of_preset in ours.items()]
    others = {pattern: one for pattern, one in ours.items() if pattern != MVAR}
    found += [_cell(pattern, as_large_as(one, sizes[MVAR]), AS_MVAR) for pattern, one in others.items()]
    return [*found, _cell(MVAR, as_large_as(ours[MVAR], sizes[VAR]), AS_VAR)]


def _cell(pattern: str, config: RunConfig, size: str) -> Cell:
    axes = {"pattern": pattern, "size": size, "width": config.model.width, "of_preset": size == SAME_WIDTH}
    return Cell(f"{pattern}, {size}", config, axes)


def mvar_of_that_size(cell: Any, cells: Sequence[Any]) -> Any:
    """What a row is compared with: M-VAR, the shrunk one with VAR."""
    wanted = VAR if cell.axes["size"] == AS_VAR else MVAR
    return next((one for one in cells if one.axes["of_preset"] and one.axes["pattern"] == wanted), cells[0])


EXPERIMENT = Experiment(
    "inter_scale",
    "Between scales",
    "intra+X for every mixer X that carries scales, at one width and at one size",
    cells,
    against=mvar_of_that_size,
    compares="nothing",
    figures=("inter_scale", "costs_by_length"),
    columns=COLUMNS,
    chooses=True,
    place=35,
)
