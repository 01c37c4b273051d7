"""Table 5: M-VAR at about VAR's number of parameters, made narrower (M-VAR-W) or shallower (M-VAR-D).

mvar run parameters
"""

from fractions import Fraction

from mvar import Cell, Column, Experiment, RunConfig, UserError, columns, override, paper_rows, resize

MVAR = "intra+mamba"
REFERENCE = "M-VAR"  # the row that cost and time are relative to
COLUMNS = (
    columns.name("model"),
    columns.DEPTH,
    columns.WIDTH,
    columns.PARAMETERS,
    Column("paper_params", "parameters", columns.PAPER),
    columns.FID,
    columns.PAPER_FID,
    *columns.SCORES,
    *columns.RELATIVE,
    *columns.SPENT,
)


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
        names = ("params", "fid", "relative_training_cost", "relative_inference_time")
        printed = {name: row[name] for name in names}
        found.append(Cell(row["model"], sized, {"pattern": layer, "depth": depth, "width": width}, printed))
    return found


EXPERIMENT = Experiment(
    "parameters",
    "Table 5",
    "VAR, M-VAR-W, M-VAR-D, M-VAR",
    cells,
    notes=(
        f"Cost and time are relative to {REFERENCE}, as in the paper. Measured: time of a training step and of "
        "sampling, on a machine that runs may have shared; analytic: FLOPs of a forward pass (training is three of "
        "them) and of sampling with state, from the config alone.",
    ),
    relative_to=REFERENCE,
    of_paper=True,
    columns=COLUMNS,
    place=20,
)
