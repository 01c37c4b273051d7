"""Figure 5: FID and held-out likelihood against the number of layers replaced.

python analysis/layers.py --results results
"""

import sys
from pathlib import Path

from mvar import UserError
from mvar import analysis as kit


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """One figure for each request of the experiment `layers`."""
    page.figure(manifest.name, layers_figure, table, manifest, page.figures)


def layers_figure(table: kit.Table, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """Figure 5: FID and held-out NLL against the number of layers replaced."""
    rows = [row for row in table.rows if row.get("fid") or row.get("nll")]
    if not rows:
        raise UserError(f"figure {manifest.name}: no finished run to draw")
    with kit.canvas(directory, manifest.name, 2.9, ncols=2) as (_, axes):
        for ax, key, label in zip(axes[0], ("fid", "nll"), ("FID ↓", "held-out NLL ↓ (bits per token)"), strict=True):
            there = [row for row in rows if row.get(key)]
            look = kit.mixer_look("intra+mamba") | {"label": None}
            kit.points(ax, [row["layers_replaced"] for row in there], [row[key] for row in there], **look)
            ax.set(xlabel=f"layers replaced by intra+mamba (of {rows[0]['depth']})", ylabel=label)
            ax.set_xticks([row["layers_replaced"] for row in rows])
        kit.despine(*axes[0])
    seeds = max(row["n"] for row in rows)
    bars = "bars: standard deviation over seeds" if seeds > 1 else "one seed a point, hence no bars"
    caption = f"FID (left) and held-out likelihood (right) as layers are replaced from the input on; {bars}."
    return kit.Figure(manifest.name, f"Figure 5: {manifest.title}", caption)


ANALYSIS = kit.Analysis("layers", "Figure 5: FID against the number of layers replaced", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
