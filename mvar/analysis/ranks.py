"""Mass beside the effect of cuts: points of single models, and their rank correlation over seeds."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from mvar.analysis.compare import Measured
from mvar.analysis.cuts import CutModel, head_cut
from mvar.probes.knockout import matrix_of

PAIRS, HEADS = "pairs of scales", "layers and heads"  # what the points of a rank correlation are
POINTS = {
    PAIRS: "keys of one scale for queries of one",
    HEADS: "own and coarser scales of each layer or head, two groups whose masses add up to all of it, so that what "
    "tells the groups apart makes much of this number",
}
Points = dict[Any, tuple[float, float]]  # mass and effect, by what is cut


def points_of(model: CutModel) -> dict[str, dict[int, Points]]:
    """Mass and effect by what the points are and by seed, of those with three points or more.

    Empty where a cut also takes away mass that is not known, of mixers without attention maps.
    """
    if not model.has_all_mass:
        return {}
    found = {
        name: {seed: points(model, seed) for seed in model.attention}
        for name, points in ((PAIRS, pairs_of), (HEADS, heads_of))
    }
    enough = {name: {s: p for s, p in by_seed.items() if len(p) > 2} for name, by_seed in found.items()}
    return {name: by_seed for name, by_seed in enough.items() if by_seed}


def pairs_of(model: CutModel, seed: int) -> Points:
    """Every pair of scales of one seed's model; the mass is that of all queries together."""
    schedule = model.config.token_space.schedule
    mass = model.attention[seed].matrix.mean(0).numpy() * np.array(schedule.lengths)[:, None] / schedule.num_tokens
    effects = matrix_of(model.found[seed].effects.values(), schedule)
    there = zip(*(at.tolist() for at in np.nonzero(np.isfinite(effects))), strict=True)
    return {at: (float(mass[at]), float(effects[at])) for at in there}


def heads_of(model: CutModel, seed: int) -> Points:
    """Own and coarser scales in every layer of one seed's model, or in every head where there are several."""
    points, stats, effects = {}, model.attention[seed], model.found[seed].effects
    heads = model.config.model.num_heads
    for target, layer, head in product(("own", "coarser"), stats.layers, range(heads)):
        cut = head_cut(target, layer, head, heads)
        share = float(stats.intra_per_head[stats.layers.index(layer), head])
        if cut in effects:
            points[cut] = share if target == "own" else 1 - share, effects[cut].change
    return points


def rank_correlation(by_seed: Mapping[int, Points]) -> Measured | None:
    """Spearman's of each seed's points; None where no seed has one.

    Points of one model depend on each other: the masses of a query add up to 1. So seeds are what an interval is over.
    """
    from scipy.stats import spearmanr

    found = {}
    for seed, points in by_seed.items():
        masses, effects = np.array(list(points.values())).T
        if np.ptp(masses) and np.ptp(effects):
            found[seed], _ = spearmanr(masses, effects)
    return Measured.of(pd.Series(found, dtype=float))


def mean_points(by_seed: Mapping[int, Points]) -> tuple[np.ndarray, np.ndarray]:
    """Mass and effect of all points, each the mean over the seeds that have it."""
    keys = dict.fromkeys(key for points in by_seed.values() for key in points)
    means = [np.mean([points[key] for points in by_seed.values() if key in points], axis=0) for key in keys]
    masses, effects = np.array(means).T
    return masses, effects


def interval_text(rho: Measured) -> str:
    """The mean over seeds and its 95 % t interval, which ends at -1 and 1; of one seed the number alone."""
    if (half := rho.half_width) is None:
        return f"{rho.mean:.2f}"
    return f"{rho.mean:.2f} [{max(-1, rho.mean - half):.2f}, {min(1, rho.mean + half):.2f}]"
