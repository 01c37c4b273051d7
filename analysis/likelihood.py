"""Held-out likelihood by scale: which scales a mixer predicts well.

python analysis/likelihood.py --results results
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mvar import UserError
from mvar import analysis as kit


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """One figure for each request of an experiment that names it."""
    page.figure("likelihood", scale_figure, page.records, manifest, page.figures)


def scale_figure(records: kit.Records, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """Held-out NLL by scale, one line a mixer."""
    name = f"nll-by-scale-{manifest.tag}"
    keys = sorted(key for key in records.table.columns if key.startswith("eval/nll_bits_scale_"))
    lines = _lines(records, manifest, keys)
    if not lines:
        raise UserError(f"figure {name}: no held-out likelihood by scale to draw")
    drawn: list[kit.Measured] = []
    with kit.canvas(directory, name, 2.7, width=kit.COLUMN) as (_, axes):
        ax = axes[0, 0]
        for number, (label, rows) in enumerate(lines.items()):
            values = [(i, m) for i, key in enumerate(keys) if (m := kit.aggregate(rows, key))]
            drawn += [value for _, value in values]
            dodge = 0.06 * (number - (len(lines) - 1) / 2)
            look = kit.mixer_look(rows["pattern"].iloc[0]) | {"label": kit.figure_text(label)}
            kit.points(ax, [i + dodge for i, _ in values], [m for _, m in values], linewidth=1.2, **look)
        sides = records.configs[next(iter(lines.values()))["run_id"].iloc[0]].tokenizer.patch_sides
        ax.set_xticks(range(len(keys)), [f"{side} × {side}" for side in sides[: len(keys)]])
        ax.set(xlabel="scale (tokens)", ylabel="held-out NLL ↓ (bits per token)")
        ax.legend(loc="best", fontsize="small")
        kit.despine(ax)
    caption = f"Bits per token of held-out images, by scale, under teacher forcing; {kit.bars_text(drawn)}."
    return kit.Figure(name, f"Likelihood by scale: {manifest.title}", caption)


def _lines(records: kit.Records, manifest: kit.Manifest, keys: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Evaluations by name; rows of one training and of one likelihood, which drawing has no part in, are one."""
    labels: dict[str, list[str]] = {}
    found: dict[str, pd.DataFrame] = {}
    for cell, rows in kit.cell_rows(records, manifest):
        if any(rows[key].notna().any() for key in keys):
            alike = str((cell.run_ids, [kit.aggregate(rows, key) for key in keys]))
            labels.setdefault(alike, []).append(cell.label)
            found[alike] = rows
    return {kit.in_common(names): found[alike] for alike, names in labels.items()}


ANALYSIS = kit.Analysis("likelihood", "Held-out likelihood by scale", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
