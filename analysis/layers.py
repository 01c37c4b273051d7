"""Figure 5: FID and held-out likelihood against the number of layers replaced, one line for each way to choose them.

python analysis/layers.py --results results
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvar import UserError
from mvar import analysis as kit

PAPER = "0.45"  # the grey of what is printed
ASIDE = 0.18  # layers by which the lines of rules stand apart


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """One figure for each request of the experiment `layers`."""
    page.figure(manifest.name, layers_figure, table, manifest, page.figures)


def layers_figure(table: kit.Table, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """Figure 5: FID and held-out NLL against the number of layers replaced."""
    rows = [row for row in table.rows if row.get("fid") or row.get("nll")]
    if not rows:
        raise UserError(f"figure {manifest.name}: no finished run to draw")
    with kit.canvas(directory, manifest.name, 3.3, ncols=2) as (figure, axes):
        for ax, key, label in zip(axes[0], ("fid", "nll"), ("FID ↓", "held-out NLL ↓ (bits/token)"), strict=True):
            looks = _looks(rows)
            for number, (rule, look) in enumerate(looks.items()):  # rows of no rule, none and all, are of every line
                there = sorted((r for r in rows if r.get(key) and r.get("rule") in (rule, "")), key=_replaced)
                aside = ASIDE * (number - (len(looks) - 1) / 2)
                xs = [_replaced(row) + aside * bool(row.get("rule")) for row in there]
                kit.points(ax, xs, [row[key] for row in there], **look)
            ax.set(xlabel=f"layers replaced by intra+mamba (of {rows[0]['depth']})", ylabel=label)
            ax.set_xticks(sorted(set(map(_replaced, rows))))
        kit.despine(*axes[0])
        printed = _paper_curve(axes[0, 0], rows)
        if printed or len(_looks(rows)) > 1:
            kit.legend_below(figure, figure.axes, "layers replaced" if len(_looks(rows)) > 1 else "")
    bars = kit.bars_text(row.get(key) for row in rows for key in ("fid", "nll"))
    which = "from the input on" if None in _looks(rows) else "as the legend says"
    caption = f"FID (left) and held-out likelihood (right) as layers are replaced {which}; {bars}.{printed}"
    return kit.Figure(manifest.name, f"{manifest.artefact}: {manifest.title}", caption)


def _paper_curve(ax: Any, rows: Sequence[dict[str, Any]]) -> str:
    """The printed values on an axis of their own, hollow and dashed; what the caption says of them."""
    printed = [(row["layers_replaced"], row["paper_fid"]) for row in rows if row.get("paper_fid") is not None]
    if not printed:
        return ""
    beside = ax.twinx()
    beside.plot(
        *zip(*printed, strict=True), "o--", color=PAPER, markerfacecolor="none", linewidth=1, label="paper, right axis"
    )
    beside.set_ylabel("FID, paper (ImageNet 256)", color=PAPER)
    beside.tick_params(axis="y", colors=PAPER)
    beside.spines["top"].set_visible(False)
    beside.spines["right"].set_color(PAPER)
    beside.grid(False)
    beside.margins(y=0.15)
    return " Hollow, dashed, on the right axis: the end points that the paper states, on ImageNet."


def _replaced(row: Mapping[str, Any]) -> int:
    return row["layers_replaced"]


def _looks(rows: Sequence[Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """How the line of each rule is drawn; a single line as M-VAR is."""
    rules = list(dict.fromkeys(row.get("rule") for row in rows if row.get("rule") != "")) or [""]
    if len(rules) == 1:
        return {rules[0]: kit.mixer_look("intra+mamba") | {"label": "measured"}}
    return {rule: {"color": f"C{n}", "marker": "os^"[n % 3], "label": rule} for n, rule in enumerate(rules)}


ANALYSIS = kit.Analysis("layers", "Figure 5: FID against the number of layers replaced", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
