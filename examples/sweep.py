"""A sweep of one's own with its table and its figure, all in one file: how many attention heads?

mvar run examples/sweep.py --preset smoke --seeds 3
mvar report --plugin examples/sweep.py
"""

import mvar
from mvar import analysis as kit


def cells(config):
    """1, 2 and 4 heads of the same width: as many parameters but for a temperature a head."""
    counts = [count for count in (1, 2, 4) if config.model.width % count == 0]
    configs = [mvar.override(config, {"model.num_heads": count}) for count in counts]
    return [mvar.Cell(str(n), sized, {"heads": n}) for n, sized in zip(counts, configs, strict=True)]


def figure(table, manifest, directory):
    """FID against the number of heads; bars are deviations over seeds."""
    rows = [row for row in table.rows if row.get("fid")]
    if not rows:
        raise mvar.UserError(f"figure {manifest.name}: no finished run to draw")
    with kit.canvas(directory, manifest.name, 2.6) as (_, axes):
        ax = axes[0, 0]
        kit.points(ax, [row["heads"] for row in rows], [row["fid"] for row in rows])
        ax.set(xlabel="attention heads", ylabel="FID ↓", xticks=[row["heads"] for row in rows])
        kit.despine(ax)
    return kit.Figure(manifest.name, f"Heads: {manifest.title}", "FID against the number of attention heads.")


def draw(page, manifest, table):
    """Called by the report for each request of the sweep."""
    page.figure(manifest.name, figure, table, manifest, page.figures)


EXPERIMENT = mvar.Experiment(
    "heads",
    "Heads",
    "1, 2 and 4 attention heads",
    cells,
    columns=(mvar.columns.name("heads"), mvar.columns.FID, *mvar.columns.SCORES, *mvar.columns.COSTS),
    compares="trend",
    along="attention heads",
    figures=("heads",),
)
ANALYSIS = kit.Analysis("heads", "FID against the number of attention heads", draw, of="sweep")
