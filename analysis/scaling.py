"""Scaling laws: how a model's loss and token error fall with its size and its training compute.

python analysis/scaling.py --results results
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from mvar import Column, UserError, columns
from mvar import analysis as kit

MODELS = {"VAR": "global", "M-VAR": "intra+mamba"}  # a row's model -> whose colour it has
METRICS = {  # key of the evaluation -> heading; the last scale's key is filled in from the data
    "eval/nll_bits_per_token": "NLL (bits/token), all scales",
    "eval/nll_bits_scale": "NLL (bits/token), last scale",
    "eval/error": "token error, all scales",
    "eval/error_scale": "token error, last scale",
}
AXES = {"num_params": "parameters", "train_flops": "training FLOPs"}
COLUMNS = (
    Column("model", "model", is_text=True),
    Column("metric", "metric", is_text=True),
    Column("axis", "against", is_text=True),
    Column("points", "sizes"),
    Column("exponent", "exponent b", columns.MEASURED, 3),
    Column("interval", "bootstrap range of b", columns.MEASURED, is_text=True),
    Column("offset", "offset c", columns.MEASURED, 3),
    Column("factor", "factor a (at the smallest)", columns.MEASURED, 3),
    Column("correlation", "correlation of the logs", columns.MEASURED, 3),
)


@dataclass(frozen=True)
class Curve:
    """One model's metric over sizes: x, mean over seeds, and the runs."""

    model: str
    metric: str
    axis: str
    xs: np.ndarray
    values: list[kit.Measured]

    @property
    def ys(self) -> np.ndarray:
        """Means over seeds."""
        return np.array([value.mean for value in self.values])


def curves(records: kit.Records, manifest: kit.Manifest) -> list[Curve]:
    """Every model's metric over the sizes of a depth sweep, as far as it was measured.

    Raises:
        UserError: evaluations that must not be compared.
    """
    cells = [(cell, rows) for cell, rows in kit.cell_rows(records, manifest) if not rows.empty]
    models = dict.fromkeys(cell.label.rpartition("-d")[0] for cell, _ in cells)
    found = []
    for model in models:
        own = [rows for cell, rows in cells if cell.label.rpartition("-d")[0] == model]
        for metric in METRICS:
            for axis in AXES:
                points = [(rows[axis].iloc[0], kit.aggregate(rows, last_scale(metric, rows))) for rows in own]
                there = sorted((x, value) for x, value in points if value is not None)
                if there:
                    xs = np.array([x for x, _ in there], dtype=float)
                    found.append(Curve(model, metric, axis, xs, [value for _, value in there]))
    return found


def last_scale(metric: str, rows: pd.DataFrame) -> str:
    """The column of a metric: of its last scale where it is one by scale."""
    if not metric.endswith("_scale"):
        return metric
    there = [str(name) for name, values in rows.items() if values.notna().to_numpy().any()]
    return max((name for name in there if name.startswith(metric)), default=metric)


def scaling_table(found: Sequence[Curve], manifest: kit.Manifest) -> tuple[kit.Table, dict[int, kit.Law]]:
    """Fits of all curves as a table, and the laws by the curve's number."""
    rows: list[dict[str, Any]] = []
    laws: dict[int, kit.Law] = {}
    few = 0
    for number, curve in enumerate(found):
        row: dict[str, Any] = {"model": curve.model, "metric": METRICS[curve.metric], "axis": AXES[curve.axis]}
        row["label"], row["points"] = curve.model, len(curve.xs)
        if len(curve.xs) >= kit.MIN_POINTS and (curve.ys > 0).all():
            law = laws[number] = kit.fit_law(curve.xs, curve.ys)
            row |= {"exponent": law.exponent, "offset": law.offset, "factor": law.factor}
            row["interval"] = f"[{law.low:.3f}, {law.high:.3f}]" if law.resolved else "not resolved"
            row["correlation"] = None if np.isnan(law.correlation) else law.correlation
        else:
            few += 1
            row["interval"] = kit.DASH
        rows.append(row)
    run_ids = [sorted({run_id for value in curve.values for run_id in value.run_ids}) for curve in found]
    title = f"Scaling laws: {manifest.title}"
    return kit.Table(
        f"{manifest.name}-laws", title, COLUMNS, rows, run_ids, reading=_reading(found, few, manifest)
    ), laws


def _reading(found: Sequence[Curve], few: int, manifest: kit.Manifest) -> list[str]:
    lines = [
        "y = c + a (x / smallest x)^-b by least squares on log y. The range of b holds the middle 95 % of "
        f"{kit.BOOTSTRAP} bootstraps of the residuals. It is no 95 % interval: with so few sizes it held the true "
        "exponent in 71 to 88 % of simulated laws. Offset and exponent trade off against each other: a law is a "
        "description of these runs, no forecast.",
        "The correlation is of log x and log y, as VAR states it (near -0.998 on ImageNet).",
        "Every size trains the same steps: a point is one finished training, not the compute-optimal one.",
    ]
    if not found:
        return ["Nothing is measured yet."]
    if few:
        sizes = min(len(curve.xs) for curve in found)
        lines.append(
            f"{few} of {len(found)} curves are not fitted: the law needs {kit.MIN_POINTS} sizes, {sizes} "
            f"{'is' if sizes == 1 else 'are'} there. Command: {kit.code(manifest.command)}"
        )
    sizes = {metric: max((len(c.xs) for c in found if c.metric == metric), default=0) for metric in METRICS}
    if sizes["eval/error"] < sizes["eval/nll_bits_per_token"]:
        lines.append("Some evaluations were made before token error was measured: those sizes lack it.")
    return lines


def scaling_figure(
    found: Sequence[Curve], laws: Mapping[int, kit.Law], manifest: kit.Manifest, directory: Path
) -> kit.Figure:
    """Loss and token error against parameters and training FLOPs, log-log, with the fitted laws: VAR's plot.

    Raises:
        UserError: no point to draw.
    """
    metrics = [metric for metric in METRICS if any(curve.metric == metric for curve in found)]
    if not metrics:
        raise UserError(f"figure {manifest.name}: no finished run to draw")
    size = {"nrows": len(metrics), "ncols": len(AXES), "sharex": "col", "sharey": "row"}
    with kit.canvas(directory, manifest.name, 0.5 + 1.75 * len(metrics), **size) as (figure, axes):
        for number, curve in enumerate(found):
            ax = axes[metrics.index(curve.metric), list(AXES).index(curve.axis)]
            look = kit.mixer_look(MODELS[curve.model])
            law = laws.get(number)
            kit.points(ax, curve.xs.tolist(), curve.values, **{**look, "linestyle": "none", "label": curve.model})
            if law and law.resolved:
                xs = np.geomspace(curve.xs.min(), curve.xs.max(), 100)
                ax.plot(xs, law(xs), color=look["color"], linewidth=1.2, label="_")
            if law:
                at = (0.03, 0.06 if curve.model == "VAR" else 0.18)
                exponent = f"b = {law.exponent:.3f}" if law.resolved else "b not resolved"
                told = exponent if np.isnan(law.correlation) else f"{exponent}, r = {law.correlation:.3f}"
                ax.annotate(told, at, xycoords="axes fraction", fontsize=6.5, color=look["color"])
            _log_axes(ax)
        for row, metric in enumerate(metrics):
            axes[row, 0].set(ylabel=METRICS[metric].replace(", ", "\n"))
        for column, label in enumerate(AXES.values()):
            axes[-1, column].set(xlabel=label)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize="small")
        kit.despine(*axes.flat)
    caption = (
        "Held-out loss and token error over a depth sweep, both axes logarithmic. Lines: y = c + a x^-b, where the "
        "exponent is resolved; r: correlation of the logs; "
        f"{kit.bars_text(value for curve in found for value in curve.values)}."
    )
    return kit.Figure(manifest.name, f"Scaling laws: {manifest.title}", caption)


def _log_axes(ax: Any) -> None:
    ax.set(xscale="log", yscale="log")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.margins(y=0.15)


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """Laws as a table and as lines, for each request of the experiment `scaling`."""
    found = curves(page.records, manifest)
    laws_table, laws = scaling_table(found, manifest)
    page.table(laws_table)
    page.figure(manifest.name, scaling_figure, found, laws, manifest, page.figures)


ANALYSIS = kit.Analysis("scaling", "Scaling laws", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
