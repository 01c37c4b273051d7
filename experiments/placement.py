"""Figure 5, where: which layers are replaced by `intra+mamba`, the first, the last, or every so many.

The paper does not say which ones it replaces. The base is the request's own pattern, so that any layers can be the ones
that give way.

    mvar run placement
    mvar run placement --set model.pattern=markov:2
"""

from collections.abc import Iterator

from mvar import Cell, Experiment, RunConfig, columns, override

QUARTERS = 4
REPLACEMENT = "intra+mamba"
COLUMNS = (columns.name("layers replaced"), columns.PATTERN, columns.FID, *columns.SCORES, *columns.COSTS)


def rules(depth: int) -> Iterator[tuple[str, int, str]]:
    """Kind of rule, layers that it replaces, and the rule: a quarter, a half and three quarters, in whole layers."""
    for count in sorted({round(depth * i / QUARTERS) for i in range(1, QUARTERS)} - {0, depth}):
        yield "first", count, f"first:{count}"
        yield "last", count, f"last:{count}"
        if depth % count == 0:
            yield "every", count, f"every:{depth // count}"


def cells(config: RunConfig) -> list[Cell]:
    """None replaced, the rules, all replaced."""
    depth = config.model.depth
    found = []
    for kind, count, rule in (("", 0, "none"), *rules(depth), ("", depth, "all")):
        replaced = override(config, {"model.replace": rule, "model.replacement": REPLACEMENT})
        axes = {"rule": kind, "layers_replaced": count, "depth": depth, "pattern": replaced.model.pattern}
        found.append(Cell(f"{rule} of {depth}" if kind else rule, replaced, axes))
    return found


EXPERIMENT = Experiment(
    "placement",
    "Figure 5, where",
    "the first, the last or every few layers intra+mamba",
    cells,
    baseline=lambda config: config,
    compares="rules",
    figures=("layers",),
    columns=COLUMNS,
    place=31,
)
