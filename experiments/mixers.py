"""Table 6: which mixers a layer holds. One row a method of the paper, its mixers read from the printed table.

Where the config asks for another pattern (`--set model.pattern=...`), it is one row more, beside which nothing is
printed: a mixer of one's own among the paper's, labelled by its pattern. Several such requests are one table.

    mvar run mixers
"""

from typing import Any

from mvar import Cell, Experiment, RunConfig, columns, override, paper_rows

COLUMNS = {"global_attention": "global", "intra_attention": "intra", "mamba": "mamba"}
COLUMNS_SHOWN = (
    columns.name("method"),
    columns.PATTERN,
    columns.FID,
    columns.PAPER_FID,
    *columns.SCORES,
    *columns.COSTS,
)


def pattern(row: dict[str, Any]) -> str:
    """The layer that a row of the printed table describes, e.g. `intra+mamba`."""
    return "+".join(mixer for column, mixer in COLUMNS.items() if row[column] == "yes")


def cells(config: RunConfig) -> list[Cell]:
    """VAR (global), 1 (intra only), 2 (Mamba only), M-VAR (both), at the preset's depth and width; then an own one."""
    found = []
    for row in paper_rows("table6_mixers"):
        layer = pattern(row)
        cell_config = override(config, {"model.pattern": layer})
        found.append(Cell(row["method"], cell_config, {"pattern": layer}, {"fid": row["fid"]}))
    if config.model.pattern not in {cell.config.model.pattern for cell in found}:
        found.append(Cell(config.model.pattern, config, {"pattern": config.model.pattern}))
    return found


EXPERIMENT = Experiment(
    "mixers",
    "Table 6",
    "VAR, intra only, Mamba only, M-VAR",
    cells,
    pair=("VAR", "M-VAR"),
    figures=("samples", "likelihood", "loss", "overfitting"),
    sets_pattern=False,
    of_paper=True,
    columns=COLUMNS_SHOWN,
    place=10,
)
