"""The interval of a mean over images or seeds."""

CONFIDENCE = 0.95


def t_factor(count: int) -> float:
    """What a deviation of `count` values is multiplied by: half of the two-sided 95 % t interval of their mean.

    NaN for a single value.
    """
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) / count**0.5 if count > 1 else float("nan")
