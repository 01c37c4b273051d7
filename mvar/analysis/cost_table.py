"""Table 1: what global attention looks at, and what it pays for that; computed for the cost, measured for the score."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mvar.analysis.compare import Measured
from mvar.analysis.records import Records
from mvar.analysis.render import ANALYTIC, MEASURED, Column, Note, Table
from mvar.analysis.tables import contradictions
from mvar.config import ModelConfig, RunConfig
from mvar.cost import attention_cost, layer_attention_cost
from mvar.files import digest
from mvar.presets import PRESETS
from mvar.probes.attention_mass import AttentionStats
from mvar.runs.request import paper_rows
from mvar.runs.states import DONE
from mvar.runs.store import one_line
from mvar.runs.wiring import run_attention
from mvar.scales import PATCH_SIDES, ScaleSchedule

PAPER = "paper (ImageNet)"
PUBLISHED = {"256": "imagenet256-d16", "512": "imagenet512-d36"}  # VAR's model whose layer the third accounting takes
COLUMNS = (
    Column("schedule", "schedule", is_text=True),
    Column("label", "attention", is_text=True),
    Column("dense", "cells, dense (%)", ANALYTIC, 2, 100),
    Column("kept", "cells, kept (%)", ANALYTIC, 2, 100),
    Column("layer", "FLOPs of the layer (%)", ANALYTIC, 2, 100),
    Column("paper_cost", "cost (%)", PAPER, 1),
    Column("uniform", "score if uniform (%)", ANALYTIC, 1, 100),
    Column("score", "score (%)", MEASURED, 1, 100),
    Column("paper_score", "score (%)", PAPER, 1),
    Column("n", "seeds", "", 0),
)


@dataclass(frozen=True)
class ScoredModel:
    """One trained model with global attention in every layer, over its seeds."""

    config: RunConfig  # of one seed
    stats: dict[str, AttentionStats]  # by run id

    @property
    def score(self) -> Measured:
        """Intra-scale share of attention mass over seeds."""
        measured = Measured.of(pd.Series([stats.share for stats in self.stats.values()]))
        assert measured is not None  # a group has at least one run
        return measured


def scored_models(
    records: Records, measure: Callable[..., AttentionStats] = run_attention
) -> tuple[list[ScoredModel], list[str]]:
    """Attention of every finished `global` run, grouped by all but the seed, and one line for each that failed."""
    groups: dict[str, dict[str, AttentionStats]] = defaultdict(dict)
    configs: dict[str, RunConfig] = {}
    problems = []
    done = set(records.table.loc[records.table["state"] == DONE, "run_id"])
    others = Counter(records.configs[run_id].model.pattern for run_id in done)
    if done and not others.pop("global", 0):
        told = ", ".join(f"{pattern} ({count})" for pattern, count in sorted(others.items()))
        problems.append(
            "Table 1: no finished run has global attention in every layer, so the score is not measured; layers of "
            f"the runs there: {told}; `mvar run mixers` trains one that has"
        )
    for run_id in sorted(done - _of_depth_sweep_alone(records)):
        config = records.configs[run_id]
        if config.model.pattern != "global":
            continue
        key = digest({**config.identity(), "seed": None})
        try:
            groups[key][run_id] = measure(records.store, records.store.run(run_id))
            configs.setdefault(key, config)
        except Exception as error:  # one run with damaged files: the others are still measured
            problems.append(f"runs/{run_id}: attention is not measured: {one_line(error)}")
    return [ScoredModel(configs[key], stats) for key, stats in groups.items() if stats], problems


def _of_depth_sweep_alone(records: Records) -> set[str]:
    """Runs that only the scaling sweep asked for: small models, which the table has no room for beside the others."""
    asked: dict[bool, set[str]] = {True: set(), False: set()}
    for manifest in records.manifests:
        asked[manifest.sweep == "scaling"] |= {run_id for cell in manifest.cells for run_id in cell.run_ids}
    return asked[True] - asked[False] if asked[False] else set()


def uniform_share(schedule: ScaleSchedule) -> float:
    """Intra-scale share if every query attended evenly to all keys that it may see: the yardstick of the score."""
    span = schedule.span()
    return sum(n * n / span.visible(k) for k, n in enumerate(schedule.lengths)) / schedule.num_tokens


def table1(models: list[ScoredModel]) -> Table:
    """Cost by three accountings and score, for VAR's 256 and 512 px schedules and for every trained model's own."""
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
    notes = contradictions("Table 1", rows)
    layer = (
        "The whole layer: four projections, feed-forward and AdaLN are the rest, which no split of the scores saves."
    )
    notes.append(Note(None, "layer", layer))
    return Table(
        "table1",
        "Table 1: attention score and cost of global attention",
        COLUMNS,
        rows,
        run_ids,
        notes,
        _reading(models),
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
            row |= {"score": Measured(mean, score.sd, score.n), "n": score.n}
        rows.append(row)
        run_ids.append(sorted(scored.stats) if scored and part != "rest" else [])


def _printed(sides: tuple[int, ...], part: str) -> dict[str, float]:
    for row in paper_rows("table1_attention_score_vs_cost"):
        if PATCH_SIDES[str(row["resolution"])] == sides and row["mode"] == part:
            score, cost = row["attention_score_percent"], row["computation_cost_percent"]
            return {"paper_score": float(score), "paper_cost": float(cost)}
    return {}


def _reading(models: list[ScoredModel]) -> list[str]:
    lines = [
        "Cost is exact, from the schedule alone. Dense counts all L x L cells, as the paper does, those included that "
        "the block-causal mask throws away; kept counts what has to be computed.",
        "Score is the share of softmax mass on keys of the query's own scale: the mean over queries, heads, layers and "
        "held-out images under teacher forcing. It is to be read against the column `if uniform`: what attention that "
        "prefers nothing puts there.",
    ]
    if not models:
        lines.append("No trained run with global attention in every layer is there: the score is not measured.")
    for scored in models:
        lines += _score_reading(scored)
    return lines


def _score_reading(scored: ScoredModel) -> list[str]:
    schedule = scored.config.token_space.schedule
    score, uniform = scored.score.mean, uniform_share(schedule)
    dense, kept = (attention_cost(schedule)[name]["intra"] for name in ("dense", "kept"))
    name = f"{scored.config.data.name} ({scored.config.train.steps:,} steps)"
    above = "more" if score > uniform else "no more"
    there = "is there" if score > 0.5 > dense else "is not there"
    by_kept = "is there" if score > 0.5 > kept else "is not there"
    by_image = sum(float(stats.intra_sd.mean()) for stats in scored.stats.values()) / len(scored.stats)
    images = next(iter(scored.stats.values())).num_images
    return [
        f"{name}: inside a scale lie {score:.1%} of the mass, {dense:.1%} of the dense cells, {kept:.1%} of the kept "
        f"ones. Uniform attention would put {uniform:.1%} there: the model prefers its own scale {above} than the "
        "sizes of the scales explain.",
        f"{name}: the paper's finding, most of the score for the smaller part of the cost, {there} by dense cells; by "
        f"kept cells it {by_kept}.",
        f"{name}: {scored.score.n} seed{'s' if scored.score.n > 1 else ''}, {images:,} images; a layer's share varies "
        f"from image to image by {by_image:.1%} (standard deviation).",
    ]
