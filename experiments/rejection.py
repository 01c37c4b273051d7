"""Table 3: rejection sampling. Every image that is drawn, and the best of several by a classifier, VAR and M-VAR.

The paper does not say how many images it draws for one that it keeps; `sample.candidates` of the request says so here.
The printed values are those of its largest models: Table 2 (every image) and Table 3 (rejection).

    mvar run rejection
"""

from collections.abc import Sequence
from typing import Any

from mvar import Cell, Column, Experiment, RunConfig, columns, override, paper_rows

CANDIDATES = 4  # where the request does not say
MODELS = {"VAR": ("global", "VAR-d30"), "M-VAR": ("intra+mamba", "M-VAR-d32")}  # ours -> layers, the paper's model
COLUMNS = (
    columns.name("images kept"),
    columns.ACCEPTANCE,
    columns.FID,
    columns.PAPER_FID,
    columns.IS,
    columns.PAPER_IS,
    Column("paper_model", "model", columns.PAPER, is_text=True),
    columns.COPIES,
    *columns.KID,
    *columns.PRECISION_RECALL,
    columns.PARAMETERS,
    columns.SAMPLE_FLOPS,
    columns.SAMPLE_S,
    columns.SEEDS,
)


def cells(config: RunConfig) -> list[Cell]:
    """VAR and M-VAR at the preset's size, without and with rejection: one training each, two sets of images."""
    candidates = config.sample.candidates if config.sample.candidates > 1 else CANDIDATES
    tables = {1: paper_rows("table2_imagenet256"), candidates: paper_rows("table3_rejection_sampling")}
    found = []
    for name, (pattern, printed_as) in MODELS.items():
        for count, rows in tables.items():
            printed = next(row for row in rows if row["model"] == printed_as)
            cell_config = override(config, {"model.pattern": pattern, "sample.candidates": count})
            label = f"{name}, every image" if count == 1 else f"{name}, best of {count}"
            values = {"model": printed_as, "fid": printed["fid"], "is": printed["is"]}
            found.append(Cell(label, cell_config, {"pattern": pattern, "candidates": count}, values))
    return found


def every_image(cell: Any, cells: Sequence[Any]) -> Any:
    """What a row is compared with: every image of the same model."""
    return next(c for c in cells if c.axes["pattern"] == cell.axes["pattern"] and c.axes["candidates"] == 1)


EXPERIMENT = Experiment(
    "rejection",
    "Table 3",
    "VAR and M-VAR, every image and the best of 4",
    cells,
    against=every_image,
    compares="nothing",
    notes=(
        "Acceptance rate: images kept over images drawn. The images are picked by the classifier whose features and "
        "logits FID and IS compare, so neither is an independent judge of picked images: IS rewards them, FID may "
        "fall or, where picking narrows the set, rise. FLOPs and time an image count every candidate.",
    ),
    varied=("sample.candidates",),
    figures=("samples",),
    columns=COLUMNS,
    place=40,
)
