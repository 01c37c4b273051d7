"""Samples side by side: one panel a row of the table, the same classes row by row, real held-out images beside them.

python analysis/samples.py --results results
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvar import RunConfig, UserError, check_artefact, layout
from mvar import analysis as kit

PANELS_A_ROW = 6
MAX_TITLE = 26  # characters over a panel
LARGEST_TITLE = 8.3  # points
BROAD = 0.7  # a bold letter's width in font sizes


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """One figure for each request of an experiment that names it."""
    page.figure("samples", samples_figure, page.records, manifest, page.figures, page.problems)


def samples_figure(records: kit.Records, manifest: kit.Manifest, directory: Path, problems: list[str]) -> kit.Figure:
    """Sample grids of a sweep: real images, then every cell's first seed; a set that cannot be read is a problem.

    Raises:
        UserError: there are no samples to show.
    """
    name = f"samples-{manifest.name}"
    panels: list[tuple[str, np.ndarray]] = []
    config: RunConfig | None = None
    for cell, rows in kit.cell_rows(records, manifest):
        if rows.empty:
            continue
        row = rows.sort_values(["seed", "sample_seed"]).iloc[0]
        path = records.store.run(row["run_id"]).samples(row["evaluation_id"]) / layout.SAMPLES_NPZ
        try:
            check_artefact(path)
            panels.append((cell.label, kit.read_samples(path)))
            config = config or records.configs[row["run_id"]]
        except (UserError, OSError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            problems.append(f"{path.relative_to(records.store.root)}: {reason}; its panel is left out")
    if config is None:
        raise UserError(f"figure {name}: no samples to show")
    axes = {label.rpartition("=")[0] for label, _ in panels}
    axis = axes.pop() if len(axes) == 1 else ""  # of a grid with one: said once
    panels = [(label.removeprefix(f"{axis}="), images) for label, images in panels]
    try:
        panels.insert(0, ("real, held out", kit.real_images(config)))
    except (UserError, OSError) as error:
        problems.append(f"figure {name}: no real images beside the samples: {error}")
    _draw(panels, directory, name)
    caption = "The same classes in every panel, one a row: real held-out images, then samples as drawn, not chosen."
    caption += f" Over each: {axis}." * bool(axis)
    return kit.Figure(name, f"Samples: {manifest.artefact}, {manifest.title}", caption)


def _draw(panels: Sequence[tuple[str, np.ndarray]], directory: Path, name: str) -> None:
    sheets = [(label, kit.tile(images)) for label, images in panels]
    rows = -(-len(sheets) // PANELS_A_ROW)
    columns = -(-len(sheets) // rows)  # rows of one length, but for the last
    high, wide = sheets[0][1].shape[:2]
    height = rows * (0.96 * kit.WIDTH / columns * high / wide + 0.25)
    titles = [kit.figure_text(label, MAX_TITLE) for label, _ in sheets]
    size = 72 * kit.WIDTH / columns / (BROAD * max(map(len, titles)))
    with kit.canvas(directory, name, height, nrows=rows, ncols=columns) as (_, axes):
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, title, (_, sheet) in zip(axes.flat, titles, sheets, strict=False):
            ax.imshow(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet, cmap="gray", vmin=0, vmax=255)
            ax.set_title(title, loc="center", fontsize=min(size, LARGEST_TITLE))


ANALYSIS = kit.Analysis("samples", "Samples of every row, side by side", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
