"""Figures that stand beside the paper's and VAR's: FID against size and time (Figure 2), and scaling laws."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvar.analysis.compare import Measured
from mvar.analysis.figures import points
from mvar.analysis.records import Manifest
from mvar.analysis.render import Table
from mvar.analysis.scaling import AXES, METRICS, Curve, Law
from mvar.analysis.style import Figure, canvas, despine, mixer_look
from mvar.errors import UserError

MODELS = {"VAR": "global", "M-VAR": "intra+mamba"}  # a row's model -> whose colour it has
UNITS = {"M": 1e6, "B": 1e9}


def figure2(table: Table, directory: Path) -> Figure:
    """Figure 2: FID of Table 2's rows against parameters and against relative time; measured points filled.

    Printed points are hollow, at printed sizes and times; the other families are grey.
    """
    panels = (("paper_params", "num_params", "parameters"), ("paper_relative_time", "time", "relative time"))
    with canvas(directory, "figure2", 3.4, ncols=2, sharey=True) as (figure, axes):
        for ax, (printed, measured, label) in zip(axes[0], panels, strict=True):
            others = [row for row in table.rows if _model(row) is None]
            _scatter(ax, others, printed, {"color": "0.7", "marker": "x", "label": "other families, paper"})
            for model, pattern in MODELS.items():
                rows = [row for row in table.rows if _model(row) == model]
                look = mixer_look(pattern)
                hollow = {
                    "marker": look["marker"],
                    "color": look["color"],
                    "markerfacecolor": "white",
                    "linestyle": ":",
                }
                _scatter(ax, rows, printed, hollow | {"label": f"{model}, paper"})
                ours = [
                    (_number(row.get(measured)), row["fid"]) for row in rows if isinstance(row.get("fid"), Measured)
                ]
                ours = [(x, fid) for x, fid in ours if x is not None]
                if ours:
                    filled = {**look, "label": f"{model}, measured", "linestyle": "none"}
                    points(ax, [x for x, _ in ours], [fid for _, fid in ours], **filled)
            ax.set(xscale="log", xlabel=label, ylim=(1, 8))
            despine(ax)
        axes[0, 0].set(ylabel="FID ↓ (ImageNet 256 × 256)")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), fontsize="small")
    there = any(isinstance(row.get("fid"), Measured) for row in table.rows)
    caption = (
        "Hollow and grey: as printed in Table 2 (FID above 8 is outside). Time is relative to M-VAR-d32. "
        f"{'Filled: measured here.' if there else 'No run of ours on ImageNet is there.'}"
    )
    return Figure("figure2", "Figure 2: FID against parameters and time", caption)


def _model(row: Mapping[str, Any]) -> str | None:
    match = re.match(r"(M-VAR|VAR)-d\d+", str(row["label"]))
    return match[1] if match else None


def _scatter(ax: Any, rows: Sequence[Mapping[str, Any]], key: str, look: dict[str, Any]) -> None:
    found = [(_number(row.get(key)), row.get("paper_fid")) for row in rows]
    found = [(x, y) for x, y in found if x is not None and isinstance(y, int | float)]
    if found:
        ax.plot(*zip(*found, strict=True), **({"linestyle": "none", "markersize": 5, "linewidth": 1} | look))


def _number(value: Any) -> float | None:
    """A printed size or time as a number; None for what is a bound (">32") or not there."""
    if isinstance(value, Measured):
        return value.mean
    match = re.fullmatch(r"([\d.]+)([MB]?)", str(value))
    return float(match[1]) * UNITS.get(match[2], 1) if match else None


def scaling_figure(found: Sequence[Curve], laws: Mapping[int, Law], manifest: Manifest, directory: Path) -> Figure:
    """Loss and token error against parameters and training FLOPs, log-log, with the fitted laws: VAR's plot.

    Raises:
        UserError: no point to draw.
    """
    metrics = [metric for metric in METRICS if any(curve.metric == metric for curve in found)]
    if not metrics:
        raise UserError(f"figure {manifest.name}: no finished run to draw")
    size = {"nrows": len(metrics), "ncols": len(AXES), "sharex": "col", "sharey": "row"}
    with canvas(directory, manifest.name, 0.5 + 1.75 * len(metrics), **size) as (figure, axes):
        for number, curve in enumerate(found):
            ax = axes[metrics.index(curve.metric), list(AXES).index(curve.axis)]
            look = mixer_look(MODELS[curve.model])
            law = laws.get(number)
            points(ax, curve.xs, curve.values, **{**look, "linestyle": "none", "label": curve.model})
            if law and law.resolved:
                xs = np.geomspace(curve.xs.min(), curve.xs.max(), 100)
                ax.plot(xs, law(xs), color=look["color"], linewidth=1.2, label="_")
            if law:
                at = (0.03, 0.06 if curve.model == "VAR" else 0.18)
                exponent = f"b = {law.exponent:.3f}" if law.resolved else "b not resolved"
                told = f"{exponent}, r = {law.correlation:.3f}"
                ax.annotate(told, at, xycoords="axes fraction", fontsize=6.5, color=look["color"])
            _log_axes(ax)
        for row, metric in enumerate(metrics):
            axes[row, 0].set(ylabel=METRICS[metric].replace(", ", "\n"))
        for column, label in enumerate(AXES.values()):
            axes[-1, column].set(xlabel=label)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
        despine(*axes.flat)
    caption = (
        "Held-out loss and token error over a depth sweep, both axes logarithmic. Lines: y = c + a x^-b, where the "
        "exponent is resolved; r: correlation of the logs; bars: standard deviation over seeds."
    )
    return Figure(manifest.name, f"Scaling laws: {manifest.title}", caption)


def _log_axes(ax: Any) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

    ax.set(xscale="log", yscale="log")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.margins(y=0.15)
