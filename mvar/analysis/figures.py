"""What figures of measured quantities share: points with bars, units of an axis, a legend below the panels."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mvar.analysis.compare import Measured
from mvar.analysis.style import MIXERS

ERROR_BARS = {"capsize": 3, "elinewidth": 1}


def points(ax: Any, xs: Sequence[float], values: Sequence[Measured], **look: Any) -> None:
    """Means with standard deviations where there are any; without one the legend has no bars either."""
    deviations = None if all(v.sd is None for v in values) else [np.nan if v.sd is None else v.sd for v in values]
    ax.errorbar(xs, [v.mean for v in values], yerr=deviations, **(ERROR_BARS | look))


def band(ax: Any, xs: Sequence[float], values: Sequence[Measured], **look: Any) -> None:
    """Means as a line, in a band of a standard deviation to either side where there are several seeds."""
    ax.plot(xs, [v.mean for v in values], **look)
    deviations = np.array([np.nan if v.sd is None else v.sd for v in values])
    means = np.array([v.mean for v in values])
    if np.isfinite(deviations).any():
        ax.fill_between(xs, means - deviations, means + deviations, color=look.get("color"), alpha=0.2, linewidth=0)


def bars_text(values: Iterable[Measured | None], what: str = "a point") -> str:
    """What a caption says of the bars: of standard deviations over seeds, or why there are none."""
    if any(value is not None and value.sd is not None for value in values):
        return "bars: standard deviation over seeds"
    return f"one seed {what}, hence no bars"


def unit(largest: float) -> tuple[float, str]:
    """The power of a thousand to write numbers up to `largest` in."""
    exponent = max(0, 3 * int(np.log10(largest) // 3))
    return 10.0**exponent, f"10{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def legend_below(figure: Any, axes: Iterable[Any], title: str) -> None:
    """One entry a label of any of the panels, in the order of the mixers, under them."""
    handles: dict[str, Any] = {}
    for ax in axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    names = [*[name for name in MIXERS if name in handles], *[name for name in handles if name not in MIXERS]]
    figure.legend(
        [handles[n] for n in names], names, title=title, loc="outside lower center", ncols=len(names), fontsize="small"
    )
