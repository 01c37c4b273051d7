"""Better, worse or inconclusive: paired tests over training seeds, corrected for all comparisons of a table.

A pair of rows is compared on the differences of the training seeds that both have: a paired t-test, with n - 1 degrees
of freedom. Holm's correction over the table keeps the chance of a single false verdict in it at `ALPHA`, whatever the
truth is of the others. One seed is inconclusive. A difference may surely be there, and still be too small to count.
"""

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import numpy as np

from mvar.analysis.compare import CONFIDENCE, Measured

ALPHA = 1 - CONFIDENCE
POWER = 0.8
MOST_SEEDS = 1000
LARGE_SHIFT = 30.0  # of t: the power there is above 0.98 with any number of seeds; scipy's function is NaN from 36 on
K = TypeVar("K", bound=Hashable)  # what a comparison is called
BETTER, WORSE, INCONCLUSIVE = "better", "worse", "inconclusive"
SMALL = "too small to count"
REVERSED = {BETTER: WORSE, WORSE: BETTER, INCONCLUSIVE: INCONCLUSIVE}


@dataclass(frozen=True)
class Verdict:
    """What a paired comparison says of the first of two rows.

    Attributes:
        word: `better`, `worse` or `inconclusive`.
        mean: mean difference, first minus second; NaN where nothing is paired.
        p: of the t-test, Holm's correction applied; None with fewer than two pairs.
        n: pairs of training seeds.
        left_out: seeds that only one of the two has.
        sd: sample standard deviation of the differences; None with fewer than two pairs.
        level: of the strictest step of Holm's correction.
        smallest: the smallest difference that counts; None where every one does.
    """

    word: str
    mean: float
    p: float | None
    n: int
    left_out: int = 0
    sd: float | None = None
    level: float = ALPHA
    smallest: float | None = None

    @property
    def needed(self) -> int | None:
        """Seeds at which a difference of this size and scatter would be found in 80 % of such tables, by the strictest
        step of Holm's correction; None where that cannot be said."""
        return None if self.sd is None else seeds_needed(self.mean, self.sd, self.level)

    @property
    def outcome(self) -> str:
        """The word, or `SMALL` for a difference that is there and below the smallest that counts."""
        is_small = self.smallest is not None and abs(self.mean) < self.smallest
        return SMALL if is_small and self.word != INCONCLUSIVE else self.word

    @property
    def reversed(self) -> "Verdict":
        """Of the second row against the first."""
        return replace(self, word=REVERSED[self.word], mean=-self.mean)

    @property
    def told(self) -> str:
        """For a table or a sentence: the word with p, or with what is missing."""
        if self.p is None:
            return f"{INCONCLUSIVE}: {'one seed' if self.n else 'no seed in common'}, two or more are needed"
        small = f", {SMALL}" if self.outcome == SMALL else ""
        return f"{self.word} (p {p_text(self.p)}){small}"


def p_text(p: float) -> str:
    """`= 0.03`, or `below 0.001`."""
    return "below 0.001" if p < 0.001 else f"= {p:.2g}"


def left_out(verdicts: Iterable[Verdict]) -> list[str]:
    """A sentence on seeds without a partner, where there are any."""
    any_left = any(verdict.left_out for verdict in verdicts)
    return ["Seeds that only one of two rows has are left out of their comparison."] if any_left else []


def differences(first: Measured, second: Measured) -> tuple[np.ndarray, int]:
    """Differences `(n,)` of the seeds that both have, first minus second; and how many seeds only one of them has."""
    return first.paired(second), len(dict(first.by_seed).keys() ^ dict(second.by_seed).keys())


def t_test(paired: np.ndarray) -> np.ndarray:
    """Two-sided p of paired differences `(..., n)`, n at least 2: that their mean is 0."""
    from scipy.stats import t

    n = paired.shape[-1]
    mean, sd = paired.mean(-1), paired.std(-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * t.sf(np.abs(mean) / (sd / math.sqrt(n)), n - 1)
    return np.where(sd > 0, p, np.where(mean == 0, 1.0, 0.0))  # no scatter: the same number at every seed


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p values `(..., m)`: below `ALPHA` is what may be claimed of all m together."""
    m = p.shape[-1]
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, -1) * np.arange(m, 0, -1)
    corrected = np.minimum(np.maximum.accumulate(steps, -1), 1.0)
    return np.take_along_axis(corrected, np.argsort(order, -1), -1)


def judge(
    pairs: Mapping[K, tuple[Measured, Measured]],
    higher_is_better: Collection[K] = (),
    counts: Mapping[K, float] | None = None,
) -> dict[K, Verdict]:
    """A verdict on the first of each pair, corrected over all of them.

    Args:
        pairs: name -> the two rows' values.
        higher_is_better: the pairs whose larger value is the better one.
        counts: name -> the smallest difference that counts, as a share of the second's mean; every one does elsewhere.
    """
    found = {name: differences(*pair) for name, pair in pairs.items()}
    tested = [name for name, (paired, _) in found.items() if len(paired) > 1]
    corrected = dict(zip(tested, holm(np.array([float(t_test(found[name][0])) for name in tested])), strict=True))
    shares, verdicts = counts or {}, {}
    for name, (paired, left_out) in found.items():
        mean = float(paired.mean()) if len(paired) else math.nan
        p = float(corrected[name]) if name in corrected else None
        word = INCONCLUSIVE
        if p is not None and p < ALPHA:
            word = BETTER if (mean > 0) == (name in higher_is_better) else WORSE
        sd = float(paired.std(ddof=1)) if p is not None else None
        smallest = shares[name] * abs(pairs[name][1].mean) if name in shares else None
        verdicts[name] = Verdict(word, mean, p, len(paired), left_out, sd, ALPHA / max(1, len(tested)), smallest)
    return verdicts


# Power ----------------------------------------------------------------------------------------------------------------


def power(effect: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that a paired t-test of n seeds finds a mean difference whose scatter over seeds is `sd`."""
    from scipy.special import ncfdtr
    from scipy.stats import t

    bound, shift = t.ppf(1 - alpha / 2, n - 1), abs(effect) / sd * math.sqrt(n)
    return 1 - float(ncfdtr(1, n - 1, min(shift, LARGE_SHIFT) ** 2, bound**2))  # of t's square


@cache
def seeds_needed(effect: float, sd: float, alpha: float = ALPHA) -> int | None:
    """The fewest seeds at which `power` reaches 80 %; None beyond `MOST_SEEDS`, or where there is no scatter."""
    if not sd or not effect or power(effect, sd, MOST_SEEDS, alpha) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # power grows with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, sd, middle, alpha) >= POWER else (middle, high)
    return high


# Intervals ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled:
    """The half-width of every difference's interval, from the scatter of all rows of a table together.

    It assumes that all rows scatter equally around what seeds and rows add, which gives it more degrees of freedom
    than the pairs have: (rows - 1) (seeds - 1).
    """

    half_width: float
    freedom: int
    num_seeds: int
    left_out: int = 0  # rows of one seed

    def told(self, name: str, factor: float = 1.0) -> str:
        """A sentence on the differences of a metric, times a factor, which says what is assumed."""
        rows = "all rows of several seeds" if self.left_out else "all rows"
        return (
            f"If all rows scattered equally, a difference of {name} would have an interval of "
            f"±{self.half_width * factor:.3f} (pooled over {rows}, {self.freedom} degrees of freedom, "
            f"{self.num_seeds} seeds)."
        )


def pooled(rows: Sequence[Measured]) -> Pooled | None:
    """The pooled interval over the seeds that all rows of several have; None with fewer than two of either.

    Rows of the same numbers are one, as those of NLL are, which is the same at any guidance. A row of one seed tells
    nothing of how rows scatter: it is left out.
    """
    from scipy.stats import t

    distinct = [dict(numbers) for numbers in dict.fromkeys(row.by_seed for row in rows)]
    tables = [numbers for numbers in distinct if len(numbers) > 1]
    if len(tables) < 2:
        return None
    seeds = sorted(set.intersection(*(set(table) for table in tables)))
    if len(seeds) < 2:
        return None
    values = np.array([[table[seed] for seed in seeds] for table in tables])  # (rows, seeds)
    rest = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    freedom = (len(tables) - 1) * (len(seeds) - 1)
    variance = float((rest**2).sum()) / freedom
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(2 * variance / len(seeds))
    return Pooled(half, freedom, len(seeds), len(distinct) - len(tables))
