"""Table 5: M-VAR at about VAR's number of parameters, made narrower (M-VAR-W) or shallower (M-VAR-D)."""

from fractions import Fraction
from math import gcd

from experiments import mixers
from mvar.config import RunConfig, override
from mvar.errors import UserError
from mvar.runs.request import Cell, Sweep, paper_rows

MVAR = "intra+mamba"


def resize(config: RunConfig, depth: int, width: int) -> RunConfig:
    """The config at another size: head dimensions kept where they divide the width, drop path in step with depth."""
    model = config.model
    head_dim = gcd(model.width // model.num_heads, width)
    headdim = gcd(model.mamba.headdim, width * model.mamba.expand)
    size = {"depth": depth, "width": width, "num_heads": width // head_dim, "mamba.headdim": headdim}
    size["drop_path"] = model.drop_path * depth / model.depth  # VAR: 0.1 * depth / 24
    return override(config, {f"model.{name}": value for name, value in size.items()})


def _scale(value: int, ratio: Fraction, what: str) -> int:
    if (value * ratio).denominator != 1:
        raise UserError(
            f"model.{what}: {value} times {ratio} is no whole number; sweep parameters allows multiples of "
            f"{ratio.denominator}"
        )
    return int(value * ratio)


def cells(config: RunConfig) -> list[Cell]:
    """The printed rows, scaled: a row's depth and width relative to VAR's apply to the preset's depth and width."""
    rows = paper_rows("table5_similar_parameters")
    reference = rows[0]  # VAR
    found = []
    for row in rows:
        depth = _scale(config.model.depth, Fraction(row["depth"], reference["depth"]), "depth")
        width = _scale(config.model.width, Fraction(row["width"], reference["width"]), "width")
        layer = "global" if row is reference else MVAR
        sized = resize(override(config, {"model.pattern": layer}), depth, width)
        columns = ("params", "fid", "relative_training_cost", "relative_inference_time")
        printed = {column: row[column] for column in columns}
        found.append(Cell(row["model"], sized, {"pattern": layer, "depth": depth, "width": width}, printed))
    return found


SWEEP = Sweep("parameters", "Table 5", "VAR, M-VAR-W, M-VAR-D, M-VAR", cells, mixers.baseline)
