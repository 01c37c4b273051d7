"""One look for every figure: seaborn's colour-blind palette, one colour and marker a mixer, units on the axes."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from mvar.escaping import file_name
from mvar.files import atomic_write

DPI, SCREEN_DPI = 300, 150  # in print; of the dark picture, which only the page shows
UNSAID = r"Glyph \d+ .* missing from font|Matplotlib currently does not support|constrained_layout not applied"
WIDTH, COLUMN = 7.0, 3.4  # inches: a text page, and one of two columns
TRUETYPE: Any = {"pdf.fonttype": 42, "ps.fonttype": 42}  # what publishers ask for, and text that can be edited
DARK = ".dark.png"  # in place of .png: the picture for a dark page
MIXERS = {"global": "o", "intra": "s", "mamba": "^", "intra+mamba": "D"}  # markers: figures are read in grey too
MIXED = ("mixed", "P")  # partly replaced
OWN = "vX*<>"  # markers of mixers of one's own


@dataclass(frozen=True)
class Figure:
    """A figure that was written, .png and .pdf; a title, and a caption that says what is drawn, both plain text."""

    name: str
    title: str
    caption: str

    @property
    def file(self) -> str:
        """The name of its files, without their suffix."""
        return file_name(self.name)


def mixer_look(pattern: str) -> dict[str, Any]:
    """Colour, marker and label of a layer pattern; all patterns of several kinds of layers share one look.

    A mixer of one's own has the same colour and marker in every figure.
    """
    import seaborn

    colours = seaborn.color_palette("colorblind")
    names = list(MIXERS)
    if pattern in MIXERS:
        return {"color": colours[names.index(pattern)], "marker": MIXERS[pattern], "label": pattern}
    if " " in pattern:
        return {"color": colours[len(names)], "marker": MIXED[1], "label": MIXED[0]}
    number = crc32(pattern.encode())
    left = colours[len(names) + 1 :]
    return {"color": left[number % len(left)], "marker": OWN[number % len(OWN)], "label": pattern}


@contextmanager
def page(height: float, width: float = WIDTH, **layout: Any) -> Iterator[Any]:
    """A matplotlib figure in the house style, to be drawn on inside the block and shown or saved whenever one likes.

    Args:
        height, width: in inches; a text page is `WIDTH` wide.
        layout: `nrows`, `ncols` and whatever `Figure.subplots` takes.

    Yields:
        (figure, axes), axes as an array of two dimensions.
    """
    import matplotlib
    import seaborn
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    style: Any = (
        seaborn.axes_style("ticks")
        | seaborn.plotting_context("paper")
        | {
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "0.9",
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "text.usetex": False,  # whatever the user's own settings say: `mvar.escaping.figure` is not for TeX
            "text.parse_math": True,
            "legend.frameon": False,
            "legend.title_fontsize": "small",
            "lines.markersize": 6,
        }
    )
    with matplotlib.rc_context(style):  # no pyplot: nothing global, any thread
        figure = Canvas(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        arranged: dict[str, Any] = {"squeeze": False, **layout}
        axes = figure.subplots(**arranged)
        yield figure, axes


@contextmanager
def canvas(directory: Path, name: str, height: float, **layout: Any) -> Iterator[Any]:
    """A `page` that is written as .png, .pdf and .dark.png, named as `Figure.file`, when the block ends well."""
    from mvar.analysis.dark import darken

    with page(height, **layout) as (figure, axes):
        yield figure, axes
        save(figure, directory, file_name(name))
        darken(figure)
        _write(figure, directory / f"{file_name(name)}{DARK}", SCREEN_DPI)


def save(figure: Any, directory: Path, name: str, kinds: Sequence[str] = ("png", "pdf")) -> None:
    """Write a figure as `name`.png and `name`.pdf, or one of them; the same numbers give the same bytes.

    Characters that the font lacks are boxes, and long texts leave less room; nothing is said about either.
    """
    for kind in kinds:
        _write(figure, directory / f"{name}.{kind}", DPI)
        figure.set_layout_engine("none")  # laid out by now: the second file takes half the time


def _write(figure: Any, path: Path, dpi: int) -> None:
    import matplotlib

    kind = path.suffix[1:]
    metadata = {"CreationDate": None} if kind == "pdf" else None
    with atomic_write(path) as file, warnings.catch_warnings(), matplotlib.rc_context(TRUETYPE):
        warnings.filterwarnings("ignore", UNSAID)
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)


def despine(*axes: Any) -> None:
    """Take the box's upper and right side away."""
    import seaborn

    for ax in axes:
        seaborn.despine(ax=ax)
