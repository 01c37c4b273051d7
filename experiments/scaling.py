"""Scaling laws: VAR and M-VAR over depths at one aspect ratio, for how loss and error fall with size and compute.

As in VAR, the width grows with the depth (`width = k * depth`, k of the preset; VAR: 64) and everything else stays.
Every model trains the preset's steps on the same data: each point is one finished training. VAR's frontier of
compute-optimal trainings would need longer and shorter ones beside it.

    mvar run scaling
"""

from fractions import Fraction

from mvar import Cell, Experiment, RunConfig, UserError, columns, override, resize

FRACTIONS = tuple(Fraction(n, 4) for n in (1, 2, 3, 4, 5))  # of the preset's depth
PATTERNS = {"VAR": "global", "M-VAR": "intra+mamba"}
COLUMNS = (
    columns.name("model"),
    columns.DEPTH,
    columns.WIDTH,
    columns.NLL,
    columns.ERROR,
    columns.FID,
    columns.COPIES,
    *columns.KID,
    *columns.COSTS,
)


def cells(config: RunConfig) -> list[Cell]:
    """Five depths, a quarter of the preset's to five quarters of it, for each of the two models.

    Raises:
        UserError: a preset whose width is no multiple of its depth.
    """
    depth, width = config.model.depth, config.model.width
    if width % depth:
        raise UserError(f"model.width: {width} is no multiple of model.depth {depth}, which sweep scaling keeps")
    ratio, found = width // depth, []
    for name, pattern in PATTERNS.items():
        for layers in sorted({max(1, round(depth * fraction)) for fraction in FRACTIONS}):
            sized = resize(override(config, {"model.pattern": pattern}), layers, ratio * layers)
            axes = {"pattern": pattern, "depth": layers, "width": ratio * layers}
            found.append(Cell(f"{name}-d{layers}", sized, axes))
    return found


EXPERIMENT = Experiment(
    "scaling",
    "Scaling laws",
    "VAR and M-VAR at five depths",
    cells,
    compares="sizes",
    figures=("scaling",),
    columns=COLUMNS,
    place=45,
)
