"""What figures of measured quantities share: points with bars and names, units of an axis, a legend below."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mvar.analysis.compare import Measured
from mvar.analysis.style import MIXERS

ERROR_BARS = {"capsize": 3, "elinewidth": 1}
MARKER = 4.5  # points: half of the widest marker
DISTANCES = (5.5, 11, 18, 26)  # points from a point to its name; from the second on with a line
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))  # where a name stands, the best first
ALIGNED = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}
Place = tuple[float, float]


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


def name_points(ax: Any, names: Mapping[Place, str], places: Iterable[Place]) -> None:
    """Write names beside points so that none covers a point or another name; one further away has a thin line.

    Limits and layout of the axes are to be final.

    Args:
        ax: of matplotlib.
        names: by place, in data coordinates.
        places: of all points, those without a name too.
    """
    renderer = ax.figure.canvas.get_renderer()
    point = ax.figure.dpi / 72  # px
    taken = [_around(ax.transData.transform(place), MARKER * point) for place in places]
    for place, name in names.items():
        tried = []
        for far, side in product(DISTANCES, SIDES):
            text = _named(ax, place, name, far, side)
            box = written_box(text, renderer)
            text.remove()
            line = [_around(at, point) for at in _line(ax.transData.transform(place), far, side, point)]
            covered = sum(_shared(one, other) for one in (box, *line) for other in taken)
            outside = box.width * box.height - _shared(box, ax.bbox)
            tried.append((covered + outside, len(tried), far, side, [box, *line]))
            if tried[-1][0] <= 0:
                break
        _, _, far, side, boxes = min(tried)
        _named(ax, place, name, far, side)
        taken += boxes


def _line(place: Sequence[float], far: float, side: tuple[int, int], point: float) -> list[tuple[float, float]]:
    """Places on the line from a point to its name, in px, without the marker; none where the name is at the point."""
    steps = np.linspace(far / 2, far, 4) * point if far > DISTANCES[0] else ()
    return [(place[0] + step * side[0], place[1] + step * side[1]) for step in steps]


def _named(ax: Any, place: Place, name: str, far: float, side: tuple[int, int]) -> Any:
    """One name, `far` points from its own to a side."""
    right, up = side
    look = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": MARKER}
    aligned = {"ha": ALIGNED[right][0], "va": ALIGNED[up][1] if right == 0 or up else "center"}
    at = (far * right, far * up)
    line = look if far > DISTANCES[0] else None
    text = ax.annotate(name, place, at, textcoords="offset points", fontsize=6, arrowprops=line, **aligned)
    text.set_color("0.25")
    text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # readable over error bars
    return text


def written_box(text: Any, renderer: Any) -> Bbox:
    """Where the words of an annotation stand, in px, without its line."""
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer).expanded(1.04, 1.04)


def _around(place: Sequence[float], half: float) -> Bbox:
    x, y = place
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _shared(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share."""
    both = Bbox.intersection(one, other)
    return both.width * both.height if both else 0.0
