"""What an analysis is: a figure, a table or several that belong together, over whatever runs a results directory has.

One file of `analysis/` each, with an `ANALYSIS`; it runs by itself (`python analysis/layers.py --results R`) and in
`mvar report`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mvar import plugins, shipped


@dataclass(frozen=True)
class Analysis:
    """One analysis.

    Args:
        name: of its file.
        title: what it shows, in a line.
        draw: `draw(page)` once for all results, or `draw(page, manifest, table)` for each request of an experiment
            that names it among its `figures`; `page` is a `mvar.analysis.writer.Writer`. It raises `UserError` where
            there is nothing to draw.
        of: `results` or `sweep`.
        place: of one over all results: its place in the report among experiments' and others', small numbers first.
    """

    name: str
    title: str
    draw: Callable[..., Any]
    of: Literal["results", "sweep"] = "results"
    place: int = 100


def analysis_names() -> list[str]:
    """Ours and those of plug-ins."""
    return [*shipped.names("analysis"), *(analysis.name for analysis in plugins.set_by("analysis", Analysis))]


def find_analysis(name: str) -> Analysis:
    """The analysis of a name, ours or a plug-in's, or of a file.

    Raises:
        UserError: an unknown name; a file that cannot be loaded or has no `ANALYSIS`.
    """
    own = {analysis.name: analysis for analysis in plugins.set_by("analysis", Analysis)}
    return own.get(name) or shipped.read("analysis", shipped.find("analysis", name), Analysis)
