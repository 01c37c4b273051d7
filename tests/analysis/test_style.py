"""Figures as publishers want them: text as TrueType, widths of one and two columns, legends that show what is drawn."""

import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib.transforms import Bbox
from PIL import Image

from mvar.analysis import style
from mvar.analysis.compare import Measured
from mvar.analysis.figures import MARKER, bars_text, name_points, points, written_box


@pytest.mark.parametrize("width", [style.COLUMN, style.WIDTH])
def test_a_figure_in_print(width, tmp_path, monkeypatch):
    """300 dots an inch, as wide as a column or as two; no outlines of letters (type 3) in the PDF."""
    monkeypatch.setattr(style, "DPI", 4 * style.DPI)  # tests/conftest.py divides it
    with style.page(0.5, width) as (figure, axes):
        axes[0, 0].axis("off")
        axes[0, 0].text(0.1, 0.1, "FID")
    style.save(figure, tmp_path, "figure")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (300 * width, 150) and round(image.info["dpi"][0]) == 300
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)
    assert np.array(box, float) == pytest.approx([72 * width, 36])


@pytest.mark.parametrize("sd", [None, 0.1])
def test_a_legend_has_bars_where_there_are_some(sd):
    with style.page(1) as (_, axes):
        points(axes[0, 0], [1, 2], [Measured(1.0, sd, 1, ()), Measured(2.0, None, 1, ())], label="one")
        ((handle,), _) = axes[0, 0].get_legend_handles_labels()
    assert handle.has_yerr == (sd is not None)
    assert ("hence no bars" in bars_text([Measured(1.0, sd, 1, ())])) == (sd is None)


@pytest.mark.parametrize("names", [("2 of 8", "4 of 8"), ("D", "W", "6 of 8", "2 of 8", "4 of 8")])
def test_names_cover_no_point_and_no_other_name(names):
    """Points so near that a name on the usual side would lie on its neighbour."""
    with style.page(3.2, ncols=3) as (figure, axes):
        ax = axes[0, 2]
        places = [(1 + 0.07 * n, 1 + 0.004 * (n % 2)) for n in range(len(names))]
        ax.plot(*zip((0.0, 0.9), *places, (2.0, 1.3), strict=True), "D", linestyle="none")
        figure.draw_without_rendering()
        name_points(ax, dict(zip(places, names, strict=True)), [(0.0, 0.9), *places, (2.0, 1.3)])
        renderer = figure.canvas.get_renderer()
        boxes = [written_box(text, renderer) for text in ax.texts]
        half = MARKER * figure.dpi / 72
        spots = ax.transData.transform(places)
        markers = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in spots]
    assert [text.get_text() for text in ax.texts] == list(names)
    assert not [pair for pair in combinations(boxes, 2) if Bbox.intersection(*pair)]
    assert not [box for box in boxes if any(Bbox.intersection(box, marker) for marker in markers)]
    assert all(ax.bbox.contains(*corner) for box in boxes for corner in box.corners())
