"""Guidance: VAR and M-VAR, one training each, sampled at several strengths of classifier-free guidance.

At one value for all a comparison says as much about the value as about the models. The report compares them without
guidance, at the request's own value, and each at its best, which is chosen on images that are not reported. For that it
needs two sampling seeds or more.

    mvar run guidance --sample-seeds 3
"""

from collections.abc import Sequence
from typing import Any

from mvar import Cell, Column, Experiment, RunConfig, columns, override

MODELS = {"VAR": "global", "M-VAR": "intra+mamba"}
VALUES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.5)
COLUMNS = (
    columns.name("model, guidance"),
    Column("cfg_scale", "cfg", "", 2),
    columns.FID,
    columns.IS,
    columns.COPIES,
    *columns.KID,
    *columns.PRECISION_RECALL,
    columns.SAMPLE_FLOPS,
    columns.SAMPLE_S,
    columns.SEEDS,
)


def cells(config: RunConfig) -> list[Cell]:
    """Each model at every value; the request's own is among them."""
    values = sorted({*VALUES, config.sample.cfg_scale})
    found = []
    for model, pattern in MODELS.items():
        for value in values:
            sampled = override(config, {"model.pattern": pattern, "sample.cfg_scale": value})
            axes = {"model": model, "pattern": pattern, "cfg_scale": value, "asked": config.sample.cfg_scale}
            found.append(Cell(f"{model}, cfg {value:g}", sampled, axes))
    return found


def unguided(cell: Any, cells: Sequence[Any]) -> Any:
    """What a row is compared with: the same model without guidance."""
    return next(c for c in cells if c.axes["model"] == cell.axes["model"] and not c.axes["cfg_scale"])


EXPERIMENT = Experiment(
    "guidance",
    "Guidance",
    "VAR and M-VAR at several strengths of guidance",
    cells,
    against=unguided,
    compares="nothing",
    varied=("sample.cfg_scale",),
    figures=("guidance",),
    columns=COLUMNS,
    place=45,
)
