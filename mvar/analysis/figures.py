"""Figures of measured quantities: one function a figure, each writes PNG and PDF and returns title and caption.

Every function raises `UserError` where there is nothing to draw.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvar import escaping
from mvar.analysis.compare import Measured, aggregate, check_comparable
from mvar.analysis.cost_table import ScoredModel, uniform_share
from mvar.analysis.maps import draw_flow
from mvar.analysis.records import Manifest, Records, training_curve
from mvar.analysis.render import Table
from mvar.analysis.style import MIXERS, Figure, canvas, despine, mixer_look
from mvar.analysis.tables import cell_rows
from mvar.errors import UserError
from mvar.runs.states import DONE

SMOOTHING = 30  # of a loss curve: the window is that fraction of the training
ERROR_BARS = {"capsize": 3, "elinewidth": 1}


def points(ax: Any, xs: Sequence[float], values: Sequence[Measured], **look: Any) -> None:
    """Means with standard deviations where there are any."""
    deviations = [np.nan if v.sd is None else v.sd for v in values]
    ax.errorbar(xs, [v.mean for v in values], yerr=deviations, **(ERROR_BARS | look))


def layers_figure(table: Table, manifest: Manifest, directory: Path) -> Figure:
    """Figure 5: FID and held-out NLL against the number of layers replaced."""
    rows = [row for row in table.rows if row.get("fid") or row.get("nll")]
    if not rows:
        raise UserError(f"figure {manifest.name}: no finished run to draw")
    with canvas(directory, manifest.name, 2.9, ncols=2) as (_, axes):
        for ax, key, label in zip(axes[0], ("fid", "nll"), ("FID ↓", "held-out NLL ↓ (bits per token)"), strict=True):
            there = [row for row in rows if row.get(key)]
            look = mixer_look("intra+mamba") | {"label": None}
            points(ax, [row["layers_replaced"] for row in there], [row[key] for row in there], **look)
            ax.set(xlabel=f"layers replaced by intra+mamba (of {rows[0]['depth']})", ylabel=label)
            ax.set_xticks([row["layers_replaced"] for row in rows])
        despine(*axes[0])
    seeds = max(row["n"] for row in rows)
    bars = "bars: standard deviation over seeds" if seeds > 1 else "one seed a point, hence no bars"
    caption = f"FID (left) and held-out likelihood (right) as layers are replaced from the input on; {bars}."
    return Figure(manifest.name, f"Figure 5: {manifest.title}", caption)


def cost_figure(records: Records, manifests: Sequence[Manifest], directory: Path) -> Figure:
    """FID against parameters and training FLOPs, over all sweeps of one preset and mode.

    Raises:
        UserError: nothing to draw, or evaluations that must not be compared.
    """
    from matplotlib.patheffects import withStroke

    found = {cell.run_ids: (cell, rows) for manifest in manifests for cell, rows in cell_rows(records, manifest)}
    cells = [(cell, rows) for cell, rows in found.values() if aggregate(rows, "eval/fid")]
    first = manifests[0]
    name = f"fid-cost-{first.setting}"
    if not cells:
        raise UserError(f"figure {name}: no finished run to draw")
    check_comparable(pd.concat([rows for _, rows in cells]))
    # At an equal training budget all training FLOPs are the same: what an image costs is the other half.
    flops = ("train_flops", "training FLOPs") if first.mode == "steps" else ("sample_flops", "FLOPs an image")
    panels = (("num_params", "parameters"), flops, ("image_ms", "sampling time, ms an image"))
    with canvas(directory, name, 3.2, ncols=len(panels), sharey=True) as (figure, axes):
        for ax, (key, label) in zip(axes[0], panels, strict=True):
            costs = [
                aggregate(rows.assign(image_ms=1000 * rows["sample_s"] / rows["num_images"]), key) for _, rows in cells
            ]
            unit, power = _unit(max((cost.mean for cost in costs if cost), default=1.0))
            for (cell, rows), cost in zip(cells, costs, strict=True):
                fid = aggregate(rows, "eval/fid")
                if not fid or not cost:
                    continue
                look = mixer_look(rows["pattern"].iloc[0])
                xerr = None if cost.sd is None or key != "image_ms" else [cost.sd / unit]
                points(ax, [cost.mean / unit], [fid], linestyle="none", xerr=xerr, **look)
                if look["label"] in MIXERS and not cell.label.startswith("M-VAR-"):  # the legend says it
                    continue
                at = (cost.mean / unit, fid.mean)
                told = escaping.figure(cell.label.removeprefix("M-VAR-"))
                text = ax.annotate(told, at, (4, 3), textcoords="offset points", fontsize=6, color="0.25")
                text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # readable over error bars
            ax.set(xlabel=f"{label} (× {power})" if unit != 1 else label)
            ax.margins(x=0.22, y=0.12)
        axes[0, 0].set(ylabel="FID ↓")
        _legend_below(figure, axes[0, 0], "layers")
        despine(*axes[0])
    caption = (
        "Every finished run of the sweeps; W and D are Table 5's narrower and shallower M-VAR, N of M the layers "
        "replaced. Parameters and FLOPs are analytic, sampling time is measured; bars: standard deviation over seeds."
    )
    return Figure(name, f"FID against cost: {first.title}", caption)


def _unit(largest: float) -> tuple[float, str]:
    """The power of a thousand to write numbers up to `largest` in."""
    exponent = max(0, 3 * int(np.log10(largest) // 3))
    return 10.0**exponent, f"10{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _legend_below(figure: Any, ax: Any, title: str) -> None:
    """One entry a label, in the order of the mixers, under the panels."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    names = [*[name for name in MIXERS if name in handles], *[name for name in handles if name not in MIXERS]]
    figure.legend(
        [handles[n] for n in names], names, title=title, loc="outside lower center", ncols=len(names), fontsize="small"
    )


def scale_figure(records: Records, manifest: Manifest, directory: Path) -> Figure:
    """Held-out NLL by scale, one line a mixer."""
    name = f"nll-by-scale-{manifest.setting}"
    cells = [(cell, rows) for cell, rows in cell_rows(records, manifest) if not rows.empty]
    keys = sorted(key for key in records.table.columns if key.startswith("eval/nll_bits_scale_"))
    cells = [(cell, rows) for cell, rows in cells if any(rows[key].notna().any() for key in keys)]
    if not cells:
        raise UserError(f"figure {name}: no held-out likelihood by scale to draw")
    with canvas(directory, name, 3.0) as (_, axes):
        ax = axes[0, 0]
        for number, (cell, rows) in enumerate(cells):
            values = [(i, m) for i, key in enumerate(keys) if (m := aggregate(rows, key))]
            dodge = 0.06 * (number - (len(cells) - 1) / 2)
            look = mixer_look(rows["pattern"].iloc[0]) | {"label": escaping.figure(cell.label)}
            points(ax, [i + dodge for i, _ in values], [m for _, m in values], linewidth=1.2, **look)
        sides = records.configs[cells[0][1]["run_id"].iloc[0]].tokenizer.patch_sides
        ax.set_xticks(range(len(keys)), [f"{side} × {side}" for side in sides[: len(keys)]])
        ax.set(xlabel="scale (tokens)", ylabel="held-out NLL ↓ (bits per token)")
        ax.legend(loc="best", fontsize="small")
        despine(ax)
    caption = "Bits per token of held-out images, by scale, under teacher forcing; bars: standard deviation over seeds."
    return Figure(name, f"Likelihood by scale: {manifest.title}", caption)


def loss_figure(records: Records, manifest: Manifest, directory: Path, problems: list[str]) -> Figure:
    """Training loss over steps, one colour a mixer."""
    name = f"loss-{manifest.setting}"
    trained = set(records.table.loc[records.table["state"] == DONE, "run_id"])
    drawn = False
    with canvas(directory, name, 3.0) as (_, axes):
        ax = axes[0, 0]
        for cell in manifest.cells:
            run_ids = [run_id for run_id in cell.run_ids if run_id in trained]
            curves = [
                training_curve(records.store.run(run_id), "train/loss", problems, records.cache) for run_id in run_ids
            ]
            curves = [curve for curve in curves if not curve.empty]
            if not curves:
                continue
            colour = mixer_look(records.configs[run_ids[0]].model.pattern)["color"]
            for curve in curves:
                ax.plot(curve["step"], curve["value"], color=colour, alpha=0.2, linewidth=0.6)
            mean = pd.concat(curves).groupby("step")["value"].mean()
            smooth = mean.rolling(max(1, len(mean) // SMOOTHING), min_periods=1, center=True).mean()
            ax.plot(smooth.index, smooth, color=colour, linewidth=1.5, label=escaping.figure(cell.label))
            drawn = True
        if not drawn:
            raise UserError(f"figure {name}: no training loss to draw")
        ax.set(xlabel="training step", ylabel="training loss (nats per token)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(fontsize="small")
        despine(ax)
    caption = f"Faint: every seed as logged; bold: mean over seeds, smoothed over 1/{SMOOTHING} of the training."
    return Figure(name, f"Training loss: {manifest.title}", caption)


def flow_figure(scored: ScoredModel, name: str, directory: Path) -> Figure:
    """Where attention of a `global` model goes: from scale to scale, and the intra share layer by layer."""
    stats = list(scored.stats.values())
    matrix = np.mean([s.matrix.mean(0).numpy() for s in stats], axis=0)
    heads = np.mean([s.intra_per_head.numpy() for s in stats], axis=0)
    with canvas(directory, name, 3.1, ncols=2, width_ratios=[1.15, 1]) as (_, axes):
        draw_flow(axes[0, 0], matrix, stats[0].sides)
        axes[0, 0].set(xlabel="keys of scale", ylabel="queries of scale", title="from scale to scale")
        ax, layers = axes[0, 1], stats[0].layers
        colour = mixer_look("global")["color"]
        for head in heads.T:
            ax.plot(layers, 100 * head, "o", color=colour, alpha=0.35, markersize=3, label="_")
        ax.plot(layers, 100 * heads.mean(1), color=colour, marker="o", label="mean over heads (dots)")
        uniform = 100 * uniform_share(scored.config.token_space.schedule)
        ax.axhline(uniform, color="0.4", linestyle="--", linewidth=1, label="uniform attention")
        ax.set(xlabel="layer (0: at the input)", ylabel="mass inside the own scale (%)", ylim=(0, 100))
        ax.set(title="by layer")
        ax.set_xticks(layers[:: max(1, len(layers) // 8)])
        ax.legend(fontsize="small", loc="lower left")
        despine(ax)
    data, images = scored.config.data.name, stats[0].num_images
    caption = f"Mean over layers (left), heads, queries and {images:,} held-out images; {len(stats)} seed(s)."
    return Figure(name, f"Attention of the global model on {data}, {scored.config.train.steps:,} steps", caption)


def table1_figure(table: Table, directory: Path) -> Figure:
    """Table 1 as bars: the intra-scale share of the score and of the cost."""
    import seaborn

    rows = [row for row in table.rows if row["part"] == "intra"]
    colours = seaborn.color_palette("colorblind")
    bars = (
        ("paper_score", "score, paper", colours[0], "//", 1),
        ("score", "score, measured", colours[0], None, 100),
        ("uniform", "score if uniform", "0.75", None, 100),
        ("paper_cost", "cost, paper", colours[1], "//", 1),
        ("dense", "cost, dense cells", colours[1], None, 100),
        ("kept", "cost, kept cells", colours[4], None, 100),
    )
    with canvas(directory, table.name, 3.2) as (figure, axes):
        ax, width = axes[0, 0], 0.8 / len(bars)
        for number, (key, label, colour, hatch, factor) in enumerate(bars):
            values = [row.get(key) for row in rows]
            heights = [np.nan if v is None else (v.mean if isinstance(v, Measured) else v) * factor for v in values]
            at = [i + (number - (len(bars) - 1) / 2) * width for i in range(len(rows))]
            edge = {"edgecolor": "white", "linewidth": 0.8, "hatch": hatch}
            ax.bar(at, heights, width, color=colour, label=label, **edge)
            deviations = [v.sd * factor if isinstance(v, Measured) and v.sd else 0 for v in values]
            shown = [d or np.nan for d in deviations]
            ax.errorbar(at, heights, yerr=shown, fmt="none", ecolor="0.2", **ERROR_BARS)
            for x, height, deviation in zip(at, heights, deviations, strict=True):
                if not np.isnan(height):
                    above = (x, height + deviation)
                    ax.annotate(f"{height:.0f}", above, (0, 2), textcoords="offset points", ha="center", fontsize=6.5)
        ax.set_xticks(range(len(rows)), [escaping.figure(row["schedule"]).replace(", ", "\n") for row in rows])
        ax.tick_params(axis="x", length=0)
        ax.set(ylabel="intra-scale share (%)", ylim=(0, 100))
        ax.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=len(bars) // 2, fontsize="small")
        despine(ax)
    caption = (
        "Share of attention inside a scale: of the score and of the cost. Hatched: printed by the paper (ImageNet)."
    )
    return Figure(table.name, "Table 1: attention score and cost", caption)
