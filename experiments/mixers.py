"""Table 6: which mixers a layer holds. One row a method of the paper, its mixers read from the printed table."""

from typing import Any

from experiments.cells import Cell, Sweep, paper_rows
from mvar.config import RunConfig, override

COLUMNS = {"global_attention": "global", "intra_attention": "intra", "mamba": "mamba"}


def pattern(row: dict[str, Any]) -> str:
    """The layer that a row of the printed table describes, e.g. `intra+mamba`."""
    return "+".join(mixer for column, mixer in COLUMNS.items() if row[column] == "yes")


def cells(config: RunConfig) -> list[Cell]:
    """VAR (global), 1 (intra only), 2 (Mamba only), M-VAR (both), at the preset's depth and width."""
    found = []
    for row in paper_rows("table6_mixers"):
        layer = pattern(row)
        cell_config = override(config, {"model.pattern": layer})
        found.append(Cell(row["method"], cell_config, {"pattern": layer}, {"fid": row["fid"]}))
    return found


def baseline(config: RunConfig) -> RunConfig:
    """VAR: global attention in every layer, at the preset's size."""
    return override(config, {"model.pattern": "global"})


SWEEP = Sweep("mixers", "Table 6", "VAR, intra only, Mamba only, M-VAR", cells, baseline)
