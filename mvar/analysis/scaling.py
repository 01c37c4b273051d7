"""Scaling laws: how a model's loss and token error fall with its size and its training compute.

`y = c + a (x / x0)^-b`, x0 the smallest size, by least squares on log y; the correlation of log x and log y that VAR
states; an interval of the exponent from a bootstrap of the residuals. The offset c is what no size takes away; with few
points c and b trade off against each other, which the interval shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mvar.analysis.compare import DASH, Measured, aggregate
from mvar.analysis.records import Manifest, Records
from mvar.analysis.render import MEASURED, Column, Table
from mvar.analysis.tables import cell_rows
from mvar.escaping import code

MIN_POINTS = 4  # sizes: one more than the law has parameters
BOOTSTRAP = 500
EXPONENTS = np.geomspace(0.005, 10, 400)
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
    Column("exponent", "exponent b", MEASURED, 3),
    Column("interval", "95 % interval of b", MEASURED, is_text=True),
    Column("offset", "offset c", MEASURED, 3),
    Column("factor", "factor a (at the smallest)", MEASURED, 3),
    Column("correlation", "correlation of the logs", MEASURED, 3),
)


@dataclass(frozen=True)
class Curve:
    """One model's metric over sizes: x, mean over seeds, and the runs."""

    model: str
    metric: str
    axis: str
    xs: np.ndarray
    values: list[Measured]

    @property
    def ys(self) -> np.ndarray:
        """Means over seeds."""
        return np.array([value.mean for value in self.values])


@dataclass(frozen=True)
class Law:
    """`y = offset + factor * (x / smallest)^-exponent`; `low` and `high` bound the exponent.

    The factor is what the smallest size has above the offset; exponent and factor are 0 where y does not fall.
    """

    offset: float
    factor: float
    exponent: float
    smallest: float
    low: float
    high: float
    correlation: float  # of log x and log y

    @property
    def resolved(self) -> bool:
        """Whether the points bound the exponent on both sides."""
        return EXPONENTS[0] < self.low and self.high < EXPONENTS[-1]

    def __call__(self, xs: np.ndarray) -> np.ndarray:
        """The law at sizes `xs`."""
        return self.offset + self.factor * (xs / self.smallest) ** -self.exponent


def fit_law(xs: np.ndarray, ys: np.ndarray, seed: int = 0, resamples: int = BOOTSTRAP) -> Law:
    """Fit the law to at least `MIN_POINTS` positive points `(n,)`, with a bootstrap interval of the exponent."""
    from scipy.optimize import least_squares

    smallest = float(xs.min())
    sizes = xs / smallest
    start = [float(part[0]) for part in _fit(sizes, ys[None])]
    if start[1] > 0:  # the grid's answer, refined
        bounds = ([0, 0, EXPONENTS[0] / 2], [float(ys.max()), np.inf, EXPONENTS[-1] * 2])
        inside = np.clip(start, np.array(bounds[0]) + 1e-12, np.array(bounds[1]) * (1 - 1e-9))
        found = least_squares(lambda p: np.log(p[0] + p[1] * sizes ** -p[2]) - np.log(ys), inside, bounds=bounds)
        start = [float(value) for value in found.x]
    offset, factor, exponent = start
    fitted = offset + factor * sizes**-exponent
    residuals = np.log(ys / fitted)
    residuals = (residuals - residuals.mean()) * np.sqrt(len(xs) / max(1, len(xs) - 3))  # three parameters were fitted
    drawn = np.random.default_rng(seed).choice(residuals, (resamples, len(xs)))
    low, high = np.quantile(_fit(sizes, fitted * np.exp(drawn))[2], (0.025, 0.975))
    correlation = float(np.corrcoef(np.log(xs), np.log(ys))[0, 1])
    return Law(offset, factor, exponent, smallest, float(low), float(high), correlation)


def _fit(sizes: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offset, factor and exponent of sets of points `(sets, n)` by least relative squares, exponents from a grid.

    Given the exponent the law is linear in the other two; neither may be negative.
    """
    basis = sizes ** -EXPONENTS[:, None]  # (exponents, n)
    weights = 1 / ys**2
    total, wy = weights.sum(1)[:, None], (weights * ys).sum(1)[:, None]
    wf, wff, wfy = weights @ basis.T, weights @ (basis**2).T, (weights * ys) @ basis.T  # (sets, exponents)
    factor = (total * wfy - wf * wy) / (total * wff - wf**2)
    offset = (wy - factor * wf) / total
    factor, offset = np.where(offset < 0, wfy / wff, factor), np.maximum(offset, 0)
    factor, offset = np.maximum(factor, 0), np.where(factor < 0, wy / total, offset)
    predicted = offset[..., None] + factor[..., None] * basis
    best = ((predicted / ys[:, None] - 1) ** 2).sum(-1).argmin(1)
    rows = np.arange(len(ys))
    exponent = np.where(factor[rows, best] > 0, EXPONENTS[best], 0.0)
    return offset[rows, best], factor[rows, best], exponent


def curves(records: Records, manifest: Manifest) -> list[Curve]:
    """Every model's metric over the sizes of a depth sweep, as far as it was measured.

    Raises:
        UserError: evaluations that must not be compared.
    """
    cells = [(cell, rows) for cell, rows in cell_rows(records, manifest) if not rows.empty]
    models = dict.fromkeys(cell.label.rpartition("-d")[0] for cell, _ in cells)
    found = []
    for model in models:
        own = [rows for cell, rows in cells if cell.label.rpartition("-d")[0] == model]
        for metric in METRICS:
            for axis in AXES:
                points = [(rows[axis].iloc[0], aggregate(rows, last_scale(metric, rows))) for rows in own]
                there = sorted((x, value) for x, value in points if value is not None)
                if there:
                    xs = np.array([x for x, _ in there], dtype=float)
                    found.append(Curve(model, metric, axis, xs, [value for _, value in there]))
    return found


def last_scale(metric: str, rows: pd.DataFrame) -> str:
    """The column of a metric: of its last scale where it is one by scale."""
    if not metric.endswith("_scale"):
        return metric
    return max((name for name in rows.columns if name.startswith(metric) and rows[name].notna().any()), default=metric)


def scaling_table(found: Sequence[Curve], manifest: Manifest) -> tuple[Table, dict[int, Law]]:
    """Fits of all curves as a table, and the laws by the curve's number."""
    rows: list[dict[str, Any]] = []
    laws: dict[int, Law] = {}
    few = 0
    for number, curve in enumerate(found):
        row: dict[str, Any] = {"model": curve.model, "metric": METRICS[curve.metric], "axis": AXES[curve.axis]}
        row["label"], row["points"] = curve.model, len(curve.xs)
        if len(curve.xs) >= MIN_POINTS and (curve.ys > 0).all():
            law = laws[number] = fit_law(curve.xs, curve.ys)
            row |= {"exponent": law.exponent, "offset": law.offset, "factor": law.factor}
            row["interval"] = f"[{law.low:.3f}, {law.high:.3f}]" if law.resolved else "not resolved"
            row["correlation"] = law.correlation
        else:
            few += 1
            row["interval"] = DASH
        rows.append(row)
    run_ids = [sorted({run_id for value in curve.values for run_id in value.run_ids}) for curve in found]
    title = f"Scaling laws: {manifest.title}"
    return Table(f"{manifest.name}-laws", title, COLUMNS, rows, run_ids, reading=_reading(found, few, manifest)), laws


def _reading(found: Sequence[Curve], few: int, manifest: Manifest) -> list[str]:
    lines = [
        "y = c + a (x / smallest x)^-b by least squares on log y. The interval of b is from "
        f"{BOOTSTRAP} bootstraps of the residuals. With as few sizes as these, offset and exponent trade off against "
        "each other: a law is a description of these runs, no forecast.",
        "The correlation is of log x and log y, as VAR states it (near -0.998 on ImageNet).",
        "Every size trains the same steps: a point is one finished training, not the compute-optimal one.",
    ]
    if not found:
        return ["Nothing is measured yet."]
    if few:
        sizes = min(len(curve.xs) for curve in found)
        lines.append(
            f"{few} of {len(found)} curves are not fitted: the law needs {MIN_POINTS} sizes, {sizes} "
            f"{'is' if sizes == 1 else 'are'} there. Command: {code(manifest.command)}"
        )
    sizes = {metric: max((len(c.xs) for c in found if c.metric == metric), default=0) for metric in METRICS}
    if sizes["eval/error"] < sizes["eval/nll_bits_per_token"]:
        lines.append("Some evaluations were made before token error was measured: those sizes lack it.")
    return lines
