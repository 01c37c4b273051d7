"""Figure 5: how many of VAR's layers are replaced by `intra+mamba`.

The paper does not say which layers it replaces first; here it is the first ones (`first:N`). Its figure is a picture
of which only the end points are stated, so that the points between have nothing printed.

    mvar run layers
"""

from mvar import Cell, Experiment, RunConfig, columns, override, paper_rows

QUARTERS = 4
COLUMNS = (columns.name("layers replaced"), columns.FID, columns.PAPER_FID, *columns.SCORES, *columns.COSTS)


def cells(config: RunConfig) -> list[Cell]:
    """0, 1/4, 1/2, 3/4 and all of the layers replaced, rounded to whole layers; equal counts once."""
    depth = config.model.depth
    rows = paper_rows("figure5_layers_replaced")
    paper_depth = max(row["layers_replaced"] for row in rows)
    printed = {row["layers_replaced"] / paper_depth: {"fid": row["fid"]} for row in rows}
    found = []
    for count in sorted({round(depth * i / QUARTERS) for i in range(QUARTERS + 1)}):
        replaced = override(config, {"model.pattern": "global", "model.replace": f"first:{count}"})
        axes = {"layers_replaced": count, "depth": depth, "pattern": replaced.model.pattern}
        found.append(Cell(f"{count} of {depth}", replaced, axes, printed.get(count / depth, {})))
    return found


EXPERIMENT = Experiment(
    "layers",
    "Figure 5",
    "0, 1/4, 1/2, 3/4 and all layers intra+mamba",
    cells,
    compares="trend",
    along="layers replaced",
    figures=("layers",),
    of_paper=True,
    columns=COLUMNS,
    place=30,
)
