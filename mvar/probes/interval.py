"""Intervals of means over images, seeds or draws."""

import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def t_factor(count: int) -> float:
    """What a deviation of `count` values is multiplied by: half of the two-sided 95 % t interval of their mean.

    NaN for a single value.
    """
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) / count**0.5 if count > 1 else float("nan")


def welch_half_width(*parts: tuple[float, int]) -> float:
    """Half of the two-sided 95 % t interval of a sum of independent means, each `(deviation, count)`.

    Degrees of freedom are Welch's and Satterthwaite's. NaN where one has a single value.
    """
    from scipy.stats import t

    if min(count for _, count in parts) < 2:
        return float("nan")
    variances = [sd**2 / count for sd, count in parts]
    total = sum(variances)
    if not total:
        return 0.0
    freedom = total**2 / sum(v**2 / (count - 1) for v, (_, count) in zip(variances, parts, strict=True))
    return float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * total**0.5


def welch_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | None:
    """The two-sided 95 % t interval of the mean of one sample minus that of another, independent one.

    None where one has a single value.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    mean = statistics.mean(ours) - statistics.mean(theirs)
    half = welch_half_width(*((statistics.stdev(sample), len(sample)) for sample in (ours, theirs)))
    return mean - half, mean + half
