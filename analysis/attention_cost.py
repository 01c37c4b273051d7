"""Table 1: what global attention looks at, and what it pays for that; computed for the cost, measured for the score.

python analysis/attention_cost.py --results results
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn

from mvar import (
    DONE,
    PATCH_SIDES,
    PRESETS,
    AttentionStats,
    Column,
    ModelConfig,
    RunConfig,
    RunDirectory,
    ScaleSchedule,
    Store,
    attention_cost,
    columns,
    digest,
    layer_attention_cost,
    layout,
    one_line,
    paper_rows,
    run_attention,
    uniform_entropy,
    uniform_share,
)
from mvar import analysis as kit

PAPER = "paper (ImageNet)"
HALF = 0.5  # what 'most' and 'the smaller part' are held to
PUBLISHED = {"256": "imagenet256-d16", "512": "imagenet512-d36"}  # VAR's model whose layer the third accounting takes
COLUMNS = (
    Column("schedule", "schedule", is_text=True),
    Column("label", "attention", is_text=True),
    Column("dense", "cells, dense (%)", columns.ANALYTIC, 2, 100),
    Column("kept", "cells, kept (%)", columns.ANALYTIC, 2, 100),
    Column("layer", "FLOPs of the layer (%)", columns.ANALYTIC, 2, 100),
    Column("paper_cost", "cost (%)", PAPER, 1),
    Column("uniform", "score if uniform (%)", columns.ANALYTIC, 1, 100),
    Column("score", "score (%)", columns.MEASURED, 1, 100),
    Column("paper_score", "score (%)", PAPER, 1),
    Column("entropy", "attention's entropy (nats)", columns.MEASURED, 2),
    Column("relative_entropy", "of uniform attention's (%)", columns.MEASURED, 0, 100),
    Column("n", "seeds", "", 0),
)


@dataclass(frozen=True)
class ScoredModel:
    """One trained model with global attention in every layer, over its seeds."""

    config: RunConfig  # of one seed
    stats: dict[str, AttentionStats]  # by run id
    seeds: dict[str, int]  # of training, by run id

    @property
    def score(self) -> kit.Measured:
        """Intra-scale share of attention mass over seeds."""
        return self._over_seeds(lambda stats: stats.share)

    @property
    def entropy(self) -> kit.Measured:
        """Of attention, in nats, over seeds: means over layers, heads and queries."""
        return self._over_seeds(lambda stats: float(stats.layer_entropy.mean()))

    @property
    def relative_entropy(self) -> kit.Measured:
        """The same as a share of uniform attention's, of queries that see several keys."""
        return self._over_seeds(lambda stats: float(stats.layer_relative_entropy.mean()))

    def _over_seeds(self, value: Callable[[AttentionStats], float]) -> kit.Measured:
        measured = kit.Measured.of(
            pd.Series({self.seeds[run_id]: value(stats) for run_id, stats in self.stats.items()})
        )
        assert measured is not None  # a group has at least one run
        return measured


def scored_models(
    records: kit.Records, measure: Callable[..., AttentionStats] = run_attention
) -> tuple[list[ScoredModel], list[str]]:
    """Attention of every finished `global` run, grouped by all but the seed, and one line for each that failed."""
    groups: dict[str, dict[str, AttentionStats]] = defaultdict(dict)
    configs: dict[str, RunConfig] = {}
    problems = []
    for run_id in sorted(_done(records) - _of_size_sweeps_alone(records)):
        config = records.configs[run_id]
        if config.model.pattern != "global":
            continue
        key = digest({**config.identity(), "seed": None})
        try:
            groups[key][run_id] = measure(records.store, records.store.run(run_id))
            configs.setdefault(key, config)
        except Exception as error:  # one run with damaged files: the others are still measured
            problems.append(f"{layout.RUNS}/{run_id}: attention is not measured: {one_line(error)}")
    seeds = {run_id: records.configs[run_id].seed for stats in groups.values() for run_id in stats}
    return [ScoredModel(configs[key], stats, seeds) for key, stats in groups.items() if stats], problems


def _done(records: kit.Records) -> set[str]:
    return set(records.table.loc[records.table["state"] == DONE, "run_id"])


def other_layers(records: kit.Records) -> str:
    """Which layers the finished runs have, where none has global attention in every one; else nothing."""
    found = Counter(records.configs[run_id].model.pattern for run_id in _done(records))
    return "" if "global" in found else ", ".join(f"`{name}` ({count})" for name, count in sorted(found.items()))


def _of_size_sweeps_alone(records: kit.Records) -> set[str]:
    """Runs that only sweeps over sizes asked for: small models, which the table has no room for beside the others."""
    asked: dict[bool, set[str]] = {True: set(), False: set()}
    for manifest in records.manifests:
        is_sizes = manifest.is_known and manifest.experiment.compares == "sizes"
        asked[is_sizes] |= {run_id for cell in manifest.cells for run_id in cell.run_ids}
    return asked[True] - asked[False] if asked[False] else set()


def table1(models: list[ScoredModel], others: str = "") -> kit.Table:
    """Cost by three accountings and score, for VAR's 256 and 512 px schedules and for every trained model's own.

    Args:
        models: what the score is of.
        others: `other_layers` of the runs there.
    """
    measured_sides = {model.config.tokenizer.patch_sides for model in models}
    rows: list[dict[str, Any]] = []
    run_ids: list[list[str]] = []
    for resolution, preset in PUBLISHED.items():
        if PATCH_SIDES[resolution] not in measured_sides:
            model = PRESETS[preset].model
            _add_block(rows, run_ids, f"{resolution} px, VAR-d{model.depth}", model, PATCH_SIDES[resolution], None)
    for scored in models:
        config = scored.config
        size = f"{config.model.depth} layers of width {config.model.width}, {config.train.steps:,} steps"
        label = f"{config.data.name} {config.data.image_size} px, {size}"
        _add_block(rows, run_ids, label, config.model, config.tokenizer.patch_sides, scored)
    notes = kit.contradictions("Table 1", rows)
    layer = (
        "The whole layer: four projections, feed-forward and AdaLN are the rest, which no split of the scores saves."
    )
    notes.append(kit.Note(None, "layer", layer))
    return kit.Table(
        "table1",
        "Table 1: attention score and cost of global attention",
        COLUMNS,
        rows,
        run_ids,
        notes,
        _reading(models, others),
    )


def _add_block(
    rows: list[dict[str, Any]],
    run_ids: list[list[str]],
    label: str,
    model: ModelConfig,
    sides: tuple[int, ...],
    scored: ScoredModel | None,
) -> None:
    schedule = ScaleSchedule(sides)
    cells, layer = attention_cost(schedule), layer_attention_cost(model, schedule)
    intra_uniform = uniform_share(schedule)
    uniform = {"intra": intra_uniform, "inter": 1 - intra_uniform}
    for part in ("intra", "inter", "rest"):
        row: dict[str, Any] = {
            "schedule": f"{label}, L = {schedule.num_tokens:,}",
            "label": {"intra": "intra-scale", "inter": "inter-scale", "rest": "rest of the layer"}[part],
            "part": part,
            "layer": layer[part],
            **{name: shares.get(part) for name, shares in cells.items()},
            "uniform": uniform.get(part),
            **_printed(sides, part),
        }
        if scored and part != "rest":
            score = scored.score
            mean = score.mean if part == "intra" else 1 - score.mean
            row |= {"score": kit.Measured(mean, score.sd, score.n), "n": score.n}
            row |= {"entropy": scored.entropy, "relative_entropy": scored.relative_entropy}
        rows.append(row)
        run_ids.append(sorted(scored.stats) if scored and part != "rest" else [])


def _printed(sides: tuple[int, ...], part: str) -> dict[str, float]:
    for row in paper_rows("table1_attention_score_vs_cost"):
        if PATCH_SIDES[str(row["resolution"])] == sides and row["mode"] == part:
            score, cost = row["attention_score_percent"], row["computation_cost_percent"]
            return {"paper_score": float(score), "paper_cost": float(cost)}
    return {}


def _reading(models: list[ScoredModel], others: str) -> list[str]:
    lines = [
        "Cost is exact, from the schedule alone. Dense counts all L x L cells, as the paper does, those included that "
        "the block-causal mask throws away; kept counts what has to be computed.",
        "Score is the share of softmax mass on keys of the query's own scale: the mean over queries, heads, layers and "
        "held-out images under teacher forcing. It is to be read against the column `if uniform`: what attention that "
        "prefers nothing puts there.",
    ]
    if not models:
        told = f" Layers of the finished ones: {others}; `mvar run mixers` trains one that has." * bool(others)
        lines.append(f"The score is not measured: it takes a run with global attention in every layer.{told}")
    verdicts, called = verdicts_on(models), names(models)
    for number, scored in enumerate(models):
        lines += _score_reading(called[number], scored, verdicts[number, "uniform"], verdicts[number, "half"])
    if models:
        lines.append(
            f"These verdicts are t-tests over training seeds, p corrected by Holm's method over all {len(verdicts)} of "
            "them."
        )
    return lines


def names(models: Sequence[ScoredModel]) -> list[str]:
    """What sentences call each model: data and steps; of several with these also what they differ in."""
    plain = [f"{scored.config.data.name} ({scored.config.train.steps:,} steps" for scored in models]
    fields, found = [_fields(scored.config.identity()) for scored in models], []
    for number, own in enumerate(fields):
        alike = [other for other, name in zip(fields, plain, strict=True) if name == plain[number]]
        differ = [name for name in own if name != "seed" and len({str(other.get(name)) for other in alike}) > 1]
        told = "".join(f", {name.rpartition('.')[2]} {own[name]}" for name in differ)
        found.append(f"{plain[number]}{told})")
    return found


def _fields(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _fields(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}": value}
    return found


def verdicts_on(models: list[ScoredModel]) -> dict[tuple[int, str], kit.Verdict]:
    """Whether each model puts more mass on its own scale than `uniform` attention would, and than `half` of it.

    `better` is more; one correction over all of it.
    """
    pairs = {}
    for number, scored in enumerate(models):
        for name, share in (("uniform", uniform_share(scored.config.token_space.schedule)), ("half", HALF)):
            fixed = kit.Measured.of(pd.Series({seed: share for seed, _ in scored.score.by_seed}))
            pairs[number, name] = scored.score, fixed
    return kit.judge(pairs, higher_is_better=list(pairs))


TOLD = {"better": "the model puts more there", "worse": "the model puts less there"}
HALVES = {"better": "more than half of it lies there", "worse": "less than half of it lies there"}


def _score_reading(name: str, scored: ScoredModel, uniform_verdict: kit.Verdict, half: kit.Verdict) -> list[str]:
    schedule = scored.config.token_space.schedule
    score, uniform = scored.score, uniform_share(schedule)
    dense, kept = (attention_cost(schedule)[name]["intra"] for name in ("dense", "kept"))
    by_image = sum(float(stats.intra_sd.mean()) for stats in scored.stats.values()) / len(scored.stats)
    images = next(iter(scored.stats.values())).num_images
    return [
        f"{name}: inside a scale lie {score.mean:.1%} of the mass{_interval(score)}, {dense:.1%} of the dense cells, "
        f"{kept:.1%} of the kept ones. Uniform attention would put {uniform:.1%} there: "
        f"{_told(uniform_verdict, TOLD, 'the model differs')}.",
        f"{name}: most of the score for the smaller part of the cost, as the paper has it? Of the score: "
        f"{_told(half, HALVES, 'more than half of it lies there')}; uniform attention has "
        f"{'more' if uniform > HALF else 'no more'} than half of it there too. Of the cost, which is exact: "
        f"{_part(dense, 'dense')}, {_part(kept, 'kept')}.",
        f"{name}: {score.n} seed{'s' if score.n > 1 else ''}, {images:,} images; a layer's share varies "
        f"from image to image by {by_image:.1%} (standard deviation).",
        f"{name}: the entropy of attention is {scored.entropy.mean:.2f} nats, {scored.relative_entropy.mean:.0%} of "
        "uniform attention's where several keys are seen (means over layers, heads and queries).",
    ]


def _told(verdict: kit.Verdict, words: Mapping[str, str], asked: str) -> str:
    """A verdict in words, with p or with what is missing."""
    if verdict.p is None:
        return f"whether {asked} is inconclusive ({verdict.n} seed, two or more are needed)"
    return f"{words.get(verdict.word, f'whether {asked} is inconclusive')} (p {kit.p_text(verdict.p)})"


def _interval(score: kit.Measured) -> str:
    """Over training seeds; nothing for one."""
    if (half := score.half_width) is None:
        return ""
    return f" [{score.mean - half:.1%}, {score.mean + half:.1%}: 95 % over {score.n} seeds]"


def _part(cost: float, cells: str) -> str:
    """Which part of the cells is computed inside a scale; the paper's finding wants the smaller one."""
    return f"the {'smaller' if cost < HALF else 'larger'} part of the {cells} cells ({cost:.1%})"


def draw(page: kit.Writer) -> None:
    """The table, its bars, and where the attention of the widest model on each data set goes."""
    page.section("Table 1: attention score and cost")

    def measure(store: Store, run: RunDirectory) -> AttentionStats:
        return run_attention(
            store, run, lambda done, total: page.show(f"attention of {run.name}: {done} of {total} images")
        )

    models, problems = scored_models(page.records, measure)
    page.problems += problems
    table = table1(models, other_layers(page.records))
    page.headlines += [f"Attention, {line}" for line in table.reading if "inside a scale lie" in line]
    page.table(table)
    page.figure(table.name, table1_figure, table, page.figures)
    largest = {scored.config.data.name: scored for scored in sorted(models, key=lambda m: m.config.model.width)}
    for data, scored in largest.items():
        page.figure(data, flow_figure, scored, f"attention-{data}", page.figures)


def flow_figure(scored: ScoredModel, name: str, directory: Path) -> kit.Figure:
    """Where attention of a `global` model goes, from scale to scale and layer by layer, and its entropy."""
    stats, schedule = list(scored.stats.values()), scored.config.token_space.schedule
    mass = np.mean([s.matrix.mean(0).numpy() for s in stats], axis=0)
    nats = np.mean([s.scale_entropy.mean(0).numpy() for s in stats], axis=0)
    panels = (
        ("mass in the own scale (%)", [100 * s.intra_per_head for s in stats], 100 * uniform_share(schedule), 100),
        ("entropy (nats)", [s.head_entropy for s in stats], even := uniform_entropy(schedule), 1.1 * even),
    )
    with kit.canvas(directory, name, 2.9, ncols=3, width_ratios=[1.6, 1, 1]) as (figure, axes):
        kit.draw_flow(axes[0, 0], mass, stats[0].sides, nats)
        axes[0, 0].set(xlabel="keys of scale", ylabel="queries of scale", title="from scale to scale")
        layers, colour = stats[0].layers, kit.mixer_look("global")["color"]
        for ax, (label, by_seed, uniform, top) in zip(axes[0, 1:], panels, strict=True):
            heads = np.mean([values.numpy() for values in by_seed], axis=0)
            for head in heads.T:
                ax.plot(layers, head, "o", color=colour, alpha=0.35, markersize=3, label="_")
            ax.plot(layers, heads.mean(1), color=colour, marker="o", label="mean over heads (dots)")
            ax.axhline(uniform, color="0.4", linestyle="--", linewidth=1, label="uniform attention")
            ax.set(xlabel="layer (0: input)", ylabel=label, ylim=(0, top), title="by layer")
            ax.set_xticks(layers[:: max(1, len(layers) // 8)])
            kit.despine(ax)
        handles = axes[0, 1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower right", ncols=2, fontsize="small")
    data, images = scored.config.data.name, stats[0].num_images
    seeds = f"{len(stats)} seed{'s' if len(stats) > 1 else ''}"
    caption = f"Mean over layers (left), heads, queries and {images:,} held-out images; {seeds}."
    return kit.Figure(name, f"Attention of the global model on {data}, {scored.config.train.steps:,} steps", caption)


def table1_figure(table: kit.Table, directory: Path) -> kit.Figure:
    """Table 1 as bars: the intra-scale share of the score and of the cost."""
    rows = [row for row in table.rows if row["part"] == "intra"]
    colours = seaborn.color_palette("colorblind")
    bars = (
        ("paper_score", "score, paper", colours[0], "//", 1),
        ("score", "score, measured", colours[0], None, 100),
        ("uniform", "score if uniform", "0.75", None, 100),
        ("paper_cost", "cost, paper", colours[1], "//", 1),
        ("dense", "cost, dense cells", colours[1], None, 100),
        ("kept", "cost, kept cells", colours[4], None, 100),
    )
    with kit.canvas(directory, table.name, 3.2) as (figure, axes):
        ax, width = axes[0, 0], 0.8 / len(bars)
        for number, (key, label, colour, hatch, factor) in enumerate(bars):
            values = [row.get(key) for row in rows]
            heights = [np.nan if v is None else (v.mean if isinstance(v, kit.Measured) else v) * factor for v in values]
            at = [i + (number - (len(bars) - 1) / 2) * width for i in range(len(rows))]
            edge = {"edgecolor": "white", "linewidth": 0.8, "hatch": hatch}
            ax.bar(at, heights, width, color=colour, label=label, **edge)
            deviations = [v.sd * factor if isinstance(v, kit.Measured) and v.sd else 0 for v in values]
            shown = [d or np.nan for d in deviations]
            ax.errorbar(at, heights, yerr=shown, fmt="none", ecolor="0.2", **kit.ERROR_BARS)
            for x, height, deviation in zip(at, heights, deviations, strict=True):
                if not np.isnan(height):
                    above = (x, height + deviation)
                    ax.annotate(f"{height:.0f}", above, (0, 2), textcoords="offset points", ha="center", fontsize=6.5)
        ax.set_xticks(range(len(rows)), [kit.figure_text(row["schedule"]).replace(", ", "\n") for row in rows])
        ax.tick_params(axis="x", length=0)
        ax.set(ylabel="intra-scale share (%)", ylim=(0, 100))
        ax.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=len(bars) // 2, fontsize="small")
        kit.despine(ax)
    caption = (
        "Share of attention inside a scale: of the score and of the cost. Hatched: printed by the paper (ImageNet)."
    )
    return kit.Figure(table.name, "Table 1: attention score and cost", caption)


ANALYSIS = kit.Analysis("attention_cost", "Table 1: attention score against cost", draw, place=1)


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
