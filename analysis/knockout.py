"""Table 1b: what attention looks at beside what it is for, the mass on keys and the effect of cutting them.

mvar knockout RUN --results results
python analysis/knockout.py --results results
"""

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvar import (
    DONE,
    AttentionStats,
    Column,
    Knockout,
    RunConfig,
    columns,
    digest,
    kept_knockout,
    layout,
    matrix_of,
    one_line,
    run_attention,
)
from mvar import analysis as kit

PARTS = ("own", "coarser", "branch", "state")  # targets of the table: whole parts, in all layers
COLUMNS = (
    Column("model", "model", is_text=True),
    columns.name("cut"),
    Column("mass", "mass (%)", columns.MEASURED, 1, 100),
    Column("entropy", "attention's entropy (nats)", columns.MEASURED, 2, in_print=False),
    Column("kept", "pairs left (%)", columns.ANALYTIC, 1, 100),
    Column("change", "change (bits/token)", columns.MEASURED, 3),
    Column("half_width", "± over images", columns.MEASURED, 3),
    Column("control", "random instead", columns.MEASURED, 3),
    Column("beyond", "beyond random", columns.MEASURED, 3),
    Column("verdict", "than random ones it does", is_text=True),
    Column("n", "seeds", "", 0),
)
TOLD = {"better": "less harm", "worse": "more harm"}
RESAMPLES, CONFIDENCE = 2000, 0.95  # of the bootstrap of a rank correlation
Points = list[tuple[float, float]]


@dataclass
class CutModel:
    """One trained model in which something was cut, over its seeds."""

    config: RunConfig  # of one seed
    found: dict[int, Knockout] = field(default_factory=dict)  # by training seed
    attention: dict[int, AttentionStats] = field(default_factory=dict)  # where all its attention is global
    run_ids: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Layers, data and training, in words."""
        config = self.config
        return f"{config.model.pattern}, {config.data.name}, {config.train.steps:,} steps"

    def values(self, cut: str, name: str) -> kit.Measured | None:
        """One number of a cut's effect over the seeds."""
        found = {seed: getattr(k.effects[cut], name) for seed, k in self.found.items() if cut in k.effects}
        return kit.Measured.of(pd.Series(found, dtype=float), [self.run_ids[seed] for seed in found])

    def cuts(self) -> list[str]:
        """All that was cut in some seed, in order."""
        return list(dict.fromkeys(cut for knockout in self.found.values() for cut in knockout.effects))

    def mass(self, cut: str) -> kit.Measured | None:
        """Attention mass on the keys of `own` or `coarser`."""
        if cut not in ("own", "coarser") or not self.attention:
            return None
        shares = {seed: s.share if cut == "own" else 1 - s.share for seed, s in self.attention.items()}
        return kit.Measured.of(pd.Series(shares), list(self.run_ids.values()))

    def entropy(self, cut: str) -> kit.Measured | None:
        """Of the attention, in nats: mean over layers, heads and queries; beside the masses of `own` and `coarser`."""
        if cut not in ("own", "coarser") or not self.attention:
            return None
        found = {seed: float(stats.layer_entropy.mean()) for seed, stats in self.attention.items()}
        return kit.Measured.of(pd.Series(found), list(self.run_ids.values()))


def cut_models(records: kit.Records) -> tuple[list[CutModel], list[str]]:
    """Every model that `mvar knockout` was run on, grouped by all but the seed, and one line for each that failed."""
    groups: dict[str, CutModel] = {}
    problems = []
    for run_id in sorted(set(records.table.loc[records.table["state"] == DONE, "run_id"])):
        config, run = records.configs[run_id], records.store.run(run_id)
        try:
            found = kept_knockout(records.store, run)
            if found is None:
                continue
            group = groups.setdefault(digest({**config.identity(), "seed": None}), CutModel(config))
            group.found[config.seed], group.run_ids[config.seed] = found, run_id
            if config.model.pattern == "global":
                group.attention[config.seed] = run_attention(records.store, run)
        except Exception as error:  # one run with damaged files: the others are still shown
            problems.append(f"{layout.RUNS}/{run_id}: what cuts do is not shown: {one_line(error)}")
    return list(groups.values()), problems


# Table 1b -------------------------------------------------------------------------------------------------------------


def table1b(models: list[CutModel]) -> kit.Table:
    """Mass and effect of whole parts, and a verdict on each against random keys."""
    rows: list[dict[str, Any]] = []
    run_ids: list[list[str]] = []
    pairs: dict[int, tuple[kit.Measured, kit.Measured]] = {}
    for model in models:
        for cut in model.cuts():
            change, control = model.values(cut, "change"), model.values(cut, "control")
            if "," in cut or cut.partition(":")[0] not in PARTS or change is None:
                continue
            if control:
                pairs[len(rows)] = (change, control)
            half = model.values(cut, "half_width")
            row = {"model": model.name, "label": cut, "mass": model.mass(cut), "change": change, "n": change.n}
            row["entropy"] = model.entropy(cut)
            row |= {"half_width": half and half.mean, "control": control, "beyond": model.values(cut, "beyond")}
            row["kept"] = next(k.effects[cut].kept for k in model.found.values() if cut in k.effects)
            rows.append(row)
            run_ids.append(sorted(model.run_ids.values()))
    verdicts = kit.judge(pairs)
    for number, verdict in verdicts.items():
        rows[number]["verdict"] = told(verdict)
    images = ", ".join(sorted({f"{k.num_images:,}" for model in models for k in model.found.values()}))
    return kit.Table(
        "table1b",
        "Table 1b: attention mass and effect of a cut",
        COLUMNS,
        rows,
        run_ids,
        reading=_reading(models, rows, verdicts),
        caption=f"{images} held-out images a run.",
    )


def told(verdict: kit.Verdict) -> str:
    """For a table or a sentence: what a cut does beside random ones of its size, with p, or what is missing."""
    if verdict.p is None:
        return verdict.told
    return f"{TOLD.get(verdict.word, verdict.word)} (p {kit.p_text(verdict.p)})"


def _reading(models: list[CutModel], rows: list[dict[str, Any]], verdicts: dict[int, kit.Verdict]) -> list[str]:
    lines = [
        "Keys are masked before the softmax in all layers, the rest of the model is as it was trained. Change: of the "
        "held-out likelihood in bits a token, more is worse. Random instead: as many keys cut of every query, at "
        "random among all that it sees, the cut ones included, mean over draws. ±: standard deviation over seeds; over "
        "images: half of the 95 % t interval of one run.",
        "A cut measures what the trained model does without a part, not what a model trained without it would do.",
    ]
    for number, verdict in verdicts.items():
        row = rows[number]
        mass = f", {row['mass'].mean:.1%} of the mass," if row["mass"] else ""
        lines.append(
            f"{kit.prose(row['model'])}: keys of {kit.code(row['label'])}{mass} cost {row['change'].mean:+.3f} bits a "
            f"token, as many random ones {row['control'].mean:+.3f}. Less or more than random: {told(verdict)}."
        )
    for model in models:
        for name, points in (("pairs of scales", of_pairs(model)), ("layers and heads", of_heads(model))):
            if len(points) > 2:
                lines.append(f"{kit.prose(model.name)}, {name}: {correlation_told(points)}")
    return lines


# Mass beside effect ---------------------------------------------------------------------------------------------------


def mean_mass(model: CutModel) -> np.ndarray:
    """Mass `(S, S)` by query and key scale, mean over layers and seeds."""
    return np.mean([stats.matrix.mean(0).numpy() for stats in model.attention.values()], axis=0)


def mean_effects(model: CutModel) -> np.ndarray:
    """Change `(S, S)` of cutting a scale's keys (column) for the queries of one (row), mean over seeds."""
    schedule = model.config.token_space.schedule
    return np.mean([matrix_of(found.effects.values(), schedule) for found in model.found.values()], axis=0)


def of_pairs(model: CutModel) -> Points:
    """Mass and effect of every pair of scales; the mass is that of all queries together."""
    if not model.attention:
        return []
    schedule = model.config.token_space.schedule
    mass = mean_mass(model) * np.array(schedule.lengths)[:, None] / schedule.num_tokens
    effects = mean_effects(model)
    return [(float(mass[at]), float(effects[at])) for at in zip(*np.nonzero(np.isfinite(effects)), strict=True)]


def of_heads(model: CutModel) -> Points:
    """Mass and effect of own and coarser scales in every layer, or in every head where there are several."""
    points = []
    for target, layer, head in _places(model):
        several = model.config.model.num_heads > 1
        change = model.values(f"{target},layer={layer}{f',head={head}' if several else ''}", "change")
        shares = [stats.intra_per_head[stats.layers.index(layer), head] for stats in model.attention.values()]
        share = float(np.mean(shares))
        if change:
            points.append((share if target == "own" else 1 - share, change.mean))
    return points


def _places(model: CutModel) -> Iterable[tuple[str, int, int]]:
    if not model.attention:
        return
    for target in ("own", "coarser"):
        for layer in range(model.config.model.depth):
            yield from ((target, layer, head) for head in range(model.config.model.num_heads))


def rank_correlation(points: Points) -> tuple[float, float, float]:
    """Spearman's, and its 95 % interval: percentiles of a bootstrap over the points, with a fixed seed."""
    from scipy.stats import rankdata

    def rho(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        a, b = (rankdata(values, axis=-1) for values in (xs, ys))
        a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
        with np.errstate(invalid="ignore"):
            return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))

    xs, ys = np.array(points).T
    chosen = np.random.default_rng(0).integers(0, len(points), (RESAMPLES, len(points)))
    drawn = rho(xs[chosen], ys[chosen])
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(rho(xs, ys)), float(low), float(high)


def correlation_told(points: Points) -> str:
    """A sentence that says no more than the interval."""
    rho, low, high = rank_correlation(points)
    what = "more mass, more effect" if low > 0 else "more mass, less effect" if high < 0 else "inconclusive"
    return f"rank correlation of mass and effect {rho:.2f} [{low:.2f}, {high:.2f}] over {len(points)} points: {what}."


# Figures --------------------------------------------------------------------------------------------------------------


def matrices_figure(model: CutModel, name: str, directory: Path) -> kit.Figure:
    """From scale to scale: the mass, and what cutting it costs."""
    import seaborn

    effects, sides = mean_effects(model), model.config.tokenizer.patch_sides
    with kit.canvas(directory, name, 3.1, ncols=2) as (_, axes):
        kit.draw_flow(axes[0, 0], mean_mass(model), sides)
        ticks = [f"{side}×{side}" for side in sides]
        size = 8 if len(sides) <= 6 else 6
        largest = float(np.nanmax(np.abs(effects)))
        seaborn.heatmap(
            1000 * effects,
            mask=np.isnan(effects),
            ax=axes[0, 1],
            cmap="vlag",
            vmin=-1000 * largest,
            vmax=1000 * largest,
            square=True,
            annot=len(sides) <= 10,
            fmt=".0f",
            annot_kws={"fontsize": size},
            linewidths=0.5,
            linecolor="white",
            xticklabels=ticks,
            yticklabels=ticks,
            cbar_kws={"label": "change (millibits a token)", "shrink": 0.8},
        )
        axes[0, 1].grid(False)
        axes[0, 1].tick_params(length=0, labelsize=size)
        for ax, title in zip(axes[0], ("mass", "effect of the cut"), strict=True):
            ax.set(xlabel="keys of scale", ylabel="queries of scale", title=title)
    seeds = len(model.found)
    caption = (
        f"Left: where the mass of each scale's queries lies. Right: what it costs, over all tokens, when those keys "
        f"are cut for those queries in all layers. Mean over {seeds} seed{'s' * (seeds > 1)}."
    )
    return kit.Figure(name, f"Mass and effect from scale to scale: {model.name}", caption)


def scatter_figure(model: CutModel, name: str, directory: Path) -> kit.Figure:
    """Mass against effect, one point a pair of scales, and one a layer or head."""
    panels = {"pairs of scales": of_pairs(model), "layers and heads": of_heads(model)}
    shown = {title: points for title, points in panels.items() if len(points) > 2}
    with kit.canvas(directory, name, 2.9, ncols=len(shown)) as (_, axes):
        for ax, (title, points) in zip(axes[0], shown.items(), strict=True):
            xs, ys = 100 * np.array(points)[:, 0], 1000 * np.array(points)[:, 1]
            ax.axhline(0, color="0.6", linewidth=0.8)
            ax.scatter(xs, ys, s=18, color=kit.mixer_look("global")["color"], alpha=0.8)
            rho, low, high = rank_correlation(points)
            ax.set(xlabel="attention mass (%)", ylabel="change (millibits a token)")
            ax.set_title(f"{title}: rank correlation\n{rho:.2f} [{low:.2f}, {high:.2f}]", fontsize="small")
            kit.despine(ax)
    caption = (
        "A cut's cost against the mass that it takes away. Left: keys of a scale for queries of a scale, all layers. "
        "Right: keys of the own or of the coarser scales in one layer or head. Brackets: 95 % bootstrap interval."
    )
    return kit.Figure(name, f"Mass against effect: {model.name}", caption)


def draw(page: kit.Writer) -> None:
    """Table 1b of all models; of those with global attention the matrices and the scatter."""
    models, problems = cut_models(page.records)
    page.problems += problems
    if not models:
        return
    page.section("Table 1b: mass and effect")
    page.table(table1b(models))
    numbers: dict[str, int] = defaultdict(int)
    for model in models:
        data = model.config.data.name
        if not model.attention or not np.isfinite(mean_effects(model)).any():
            continue
        tag = f"{data}{f'-{numbers[data]}' if numbers[data] else ''}"
        numbers[data] += 1
        page.figure(f"matrices {tag}", matrices_figure, model, f"knockout-matrices-{tag}", page.figures)
        page.figure(f"scatter {tag}", scatter_figure, model, f"knockout-scatter-{tag}", page.figures)


ANALYSIS = kit.Analysis("knockout", "Table 1b: attention mass and effect of cuts", draw, place=2)


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
