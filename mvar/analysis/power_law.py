"""Power laws of a few points: how a quantity falls with size or compute, and how surely the exponent is known.

`y = c + a (x / x0)^-b`, x0 the smallest size, by least squares on log y; the correlation of log x and log y that VAR
states; a range of the exponent from a bootstrap of the residuals, which with few points covers the truth less often
than 95 %. The offset c is what no size takes away; with few points c and b trade off against each other.
"""

from dataclasses import dataclass

import numpy as np

MIN_POINTS = 4  # sizes: one more than the law has parameters
BOOTSTRAP = 500
EXPONENTS = np.geomspace(0.005, 10, 400)


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
    correlation: float  # of log x and log y; NaN where all y are the same

    @property
    def resolved(self) -> bool:
        """Whether the points bound the exponent on both sides."""
        return EXPONENTS[0] < self.low and self.high < EXPONENTS[-1]

    def __call__(self, xs: np.ndarray) -> np.ndarray:
        """The law at sizes `xs`."""
        return self.offset + self.factor * (xs / self.smallest) ** -self.exponent


def fit_law(xs: np.ndarray, ys: np.ndarray, seed: int = 0, resamples: int = BOOTSTRAP) -> Law:
    """Fit the law to at least `MIN_POINTS` positive points `(n,)`, with a bootstrap range of the exponent."""
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
    with np.errstate(invalid="ignore"):  # of what does not vary
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
