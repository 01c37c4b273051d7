"""Samples side by side: one panel a mixer, the same classes row by row, and real held-out images beside them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvar import escaping
from mvar.analysis.records import Manifest, Records
from mvar.analysis.style import WIDTH, Figure, canvas
from mvar.analysis.tables import cell_rows
from mvar.artefacts import check_artefact
from mvar.config import RunConfig
from mvar.data.images import load_images
from mvar.errors import UserError
from mvar.runs import arrays

CLASSES, PER_CLASS, PANELS_A_ROW = 10, 6, 5
MAX_TITLE = 26  # characters over a panel


def samples_figure(records: Records, manifest: Manifest, directory: Path, problems: list[str]) -> Figure:
    """Sample grids of a sweep: real images, then every cell's first seed; a set that cannot be read is a problem.

    Raises:
        UserError: there are no samples to show.
    """
    name = f"samples-{manifest.name}"
    panels: list[tuple[str, np.ndarray]] = []
    config: RunConfig | None = None
    for cell, rows in cell_rows(records, manifest):
        if rows.empty:
            continue
        row = rows.sort_values(["seed", "sample_seed"]).iloc[0]
        path = records.store.run(row["run_id"]).samples(row["evaluation_id"]) / "samples.npz"
        try:
            check_artefact(path)
            panels.append((cell.label, read_samples(path)))
            config = config or records.configs[row["run_id"]]
        except (UserError, OSError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            problems.append(f"{path.relative_to(records.store.root)}: {reason}; its panel is left out")
    if config is None:
        raise UserError(f"figure {name}: no samples to show")
    try:
        panels.insert(0, ("real, held out", real_images(config)))
    except (UserError, OSError) as error:
        problems.append(f"figure {name}: no real images beside the samples: {error}")
    _draw(panels, directory, name)
    caption = "The same classes in every panel, one a row: real held-out images, then samples as drawn, not chosen."
    return Figure(name, f"Samples: {manifest.artefact}, {manifest.title}", caption)


def _draw(panels: Sequence[tuple[str, np.ndarray]], directory: Path, name: str) -> None:
    sheets = [(label, tile(images)) for label, images in panels]
    columns = min(PANELS_A_ROW, len(sheets))
    rows = -(-len(sheets) // columns)
    high, wide = sheets[0][1].shape[:2]
    height = rows * (0.96 * WIDTH / columns * high / wide + 0.25)
    with canvas(directory, name, height, nrows=rows, ncols=columns) as (_, axes):
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, (label, sheet) in zip(axes.flat, sheets, strict=False):
            ax.imshow(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet, cmap="gray", vmin=0, vmax=255)
            ax.set_title(escaping.figure(label, MAX_TITLE), loc="center", fontsize="small")


def tile(images: np.ndarray) -> np.ndarray:
    """`(rows, columns, H, W, channels)` uint8 as one picture, white lines between."""
    gap = max(1, images.shape[2] // 16)
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, height, width, channels = padded.shape
    sheet = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return sheet[:-gap, :-gap]


def first_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Indices `(classes, per class)` of the first images of the first classes."""
    classes = np.unique(labels)[:CLASSES]
    count = min(PER_CLASS, *(int((labels == c).sum()) for c in classes))
    return np.stack([np.flatnonzero(labels == c)[:count] for c in classes])


def read_samples(path: Path) -> np.ndarray:
    """The first samples of the first classes, `(classes, per class, H, W, channels)`; reads no more of the file."""
    with arrays.opened(path) as archive:
        labels = arrays.whole(archive, "labels", "<i8", (None,))
        chosen = first_of_each_class(labels)
        # tens of gigabytes for ImageNet: not read whole
        with arrays.array(archive, "arr_0", "uint8", (len(labels), None, None, None)) as (file, shape):
            start, size = file.tell(), math.prod(shape[1:])
            found = {}
            for index in sorted(chosen.flat):
                file.seek(start + int(index) * size)
                found[index] = np.frombuffer(file.read(size), np.uint8).reshape(shape[1:])
    return np.stack([np.stack([found[index] for index in row]) for row in chosen])


def real_images(config: RunConfig) -> np.ndarray:
    """The first held-out images of the first classes, as `read_samples` gives samples."""
    images = load_images(config.data, "heldout")
    chosen = first_of_each_class(np.asarray(images.labels))
    return np.stack([np.stack([np.moveaxis(images.image(int(i), None), 0, -1) for i in row]) for row in chosen])
