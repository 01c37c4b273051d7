"""A table and a figure of every probe, over all models that it was run on.

mvar probe prefix RUN --results results
python analysis/probes.py --results results
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvar import DONE, Column, Probe, RunConfig, Shown, columns, digest, kept_probes, layout, one_line
from mvar import analysis as kit

HALF = "_half_width"  # of the interval over images, beside a value
BASE = "global"  # layers of the model that others are compared with
NEITHER = {"better": "lower", "worse": "higher"}  # words of a value of which neither is good
MAX_PANELS = 6  # side by side


@dataclass
class ProbedModel:
    """One trained model that a probe was run on, over its seeds."""

    config: RunConfig  # of one seed
    images: int  # at most so many of each seed's run
    among: str = ""  # of models that differ in the generator alone
    more: str = ""  # what tells it from another one of the same name
    rows: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)  # by training seed and by case
    run_ids: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Layers, data and training, in words."""
        config = self.config
        return f"{config.model.pattern}{self.more}, {config.data.name}, {config.train.steps:,} steps"

    def value(self, case: str, name: str) -> kit.Measured | None:
        """One value of a case over the seeds."""
        found = {seed: rows[case].get(name) for seed, rows in self.rows.items() if case in rows}
        return kit.Measured.of(pd.Series(found, dtype=float), [self.run_ids[seed] for seed in found])


def key_of(kind: type[Probe], row: dict[str, Any]) -> str:
    """A case as one text."""
    return json.dumps([row[shown.name] for shown in kind.fields])


def probed_models(records: kit.Records) -> tuple[dict[str, tuple[type[Probe], list[ProbedModel]]], list[str]]:
    """By probe and number of images: the models that it was run on, grouped by all but the seed; and one line for each
    that failed."""
    found: dict[str, tuple[type[Probe], dict[str, ProbedModel]]] = {}
    problems = []
    for run_id in sorted(set(records.table.loc[records.table["state"] == DONE, "run_id"])):
        config = records.configs[run_id]
        try:
            for probed in kept_probes(records.store, records.store.run(run_id)):
                _, models = found.setdefault(probed.tag, (probed.kind, {}))
                key = digest({**config.identity(), "seed": None})
                model = models.setdefault(key, ProbedModel(config, probed.images, compared_with(config)))
                model.rows[config.seed] = {key_of(probed.kind, row): row for row in probed.rows}
                model.run_ids[config.seed] = run_id
        except Exception as error:  # one run with damaged files: the others are still shown
            problems.append(f"{layout.RUNS}/{run_id}: what probes measured is not shown: {one_line(error)}")
    for _, models in found.values():
        names = Counter(model.name for model in models.values())
        for model in [model for model in models.values() if names[model.name] > 1]:
            size = model.config.model
            model.more = f" of {size.depth} layers and width {size.width}"
    return {name: (kind, list(models.values())) for name, (kind, models) in found.items()}, problems


def compared_with(config: RunConfig) -> str:
    """What models have in common that are compared with each other: all but the generator and the seed."""
    evaluation = config.evaluation
    judged = [config.extractor_id, evaluation.reference, evaluation.reference_resize_factor]
    return digest([{**config.identity(), "seed": None, "model": None}, judged])


def cases_of(kind: type[Probe], models: Iterable[ProbedModel]) -> dict[str, dict[str, Any]]:
    """Every case of any model, by its text, in the order of the figure's axis."""
    found = {key: row for model in models for rows in model.rows.values() for key, row in rows.items()}
    others = [shown.name for shown in kind.fields[1:]]
    axis = kind.fields[0].name
    return dict(sorted(found.items(), key=lambda item: ([str(item[1][name]) for name in others], item[1][axis])))


def varying(kind: type[Probe], cases: Iterable[dict[str, Any]]) -> list[Shown]:
    """The fields that are not the same in all cases; the axis always."""
    cases = list(cases)
    return [f for n, f in enumerate(kind.fields) if not n or len({str(case[f.name]) for case in cases}) > 1]


def written(value: Any, shown: Shown) -> str:
    """A field as text."""
    return f"{value:.{shown.decimals}f}" if isinstance(value, int | float) else str(value)


# Table ----------------------------------------------------------------------------------------------------------------


def table(name: str, kind: type[Probe], models: list[ProbedModel]) -> kit.Table:
    """A row a model and case: values over seeds, and intervals over images."""
    cases = cases_of(kind, models)
    fields = varying(kind, cases.values())
    same = [f"{f.label} {written(case[f.name], f)}" for case in list(cases.values())[:1] for f in kind.fields]
    same = [text for text, f in zip(same, kind.fields, strict=True) if f not in fields]
    rows, run_ids = [], []
    for model in models:
        for key, case in cases.items():
            values = {v.name: model.value(key, v.name) for v in kind.values}
            if not any(values.values()):
                continue
            row = {"model": model.name, **{f"case_{f.name}": written(case[f.name], f) for f in fields}, **values}
            halves = {v.name: model.value(key, v.name + HALF) for v in kind.values}
            row |= {n + HALF: kit.over_images(half) for n, half in halves.items() if half}
            rows.append(row | {"n": max(value.n for value in values.values() if value)})
            run_ids.append(sorted(model.run_ids.values()))
    heads = [Column("model", "model", is_text=True), *(Column(f"case_{f.name}", f.label, is_text=True) for f in fields)]
    for v in kind.values:
        heads.append(Column(v.name, v.label, columns.MEASURED, v.decimals))
        if any(v.name + HALF in row for row in rows):
            heads.append(columns.over_images(v.name + HALF, v.decimals))
    heads.append(Column("n", "seeds", "", 0))
    caption = f"{', '.join([*same, f'at most {models[0].images:,} images for likelihoods'])}."
    title = f"Probe {name}: {first_sentence(kind)}"
    return kit.Table(f"probe-{name}", title, heads, rows, run_ids, reading=reading(kind, models, rows), caption=caption)


def first_sentence(kind: type[Probe]) -> str:
    """What a probe measures, without its full stop."""
    return kind.about().rstrip(".")


def reading(kind: type[Probe], models: list[ProbedModel], rows: list[dict[str, Any]]) -> list[str]:
    """What the numbers are, and of changes how many are beyond their interval."""
    paragraphs = " ".join(" ".join((kind.__doc__ or "").split("\n\n")[1:]).split())
    lines = [kit.prose(paragraphs)] if paragraphs else []
    lines.append(
        f"±: standard deviation over seeds; {kit.OVER_IMAGES}. FID is one number of a set of images: without several "
        "seeds it has no interval."
    )
    changes = [v for v in kind.values if v.name.endswith("change") and any(v.name + HALF in row for row in rows)]
    for model in models:
        for v in changes:
            known = [
                (row[v.name].mean, row[v.name + HALF]) for row in rows if row["model"] == model.name and row[v.name]
            ]
            above, below = (sum(sign * mean > half for mean, half in known) for sign in (1, -1))
            lines.append(
                f"{kit.prose(model.name)}, {kit.prose(v.label)}: above 0 beyond its interval over images in {above} of "
                f"{len(known)} rows, below in {below}, inconclusive in {len(known) - above - below}."
            )
    return lines


# One model against another --------------------------------------------------------------------------------------------


def against(models: list[ProbedModel]) -> list[tuple[ProbedModel, ProbedModel]]:
    """Every model and the one that it is compared with: of those that share all but the generator `global`, or the
    first."""
    found = []
    for among in dict.fromkeys(model.among for model in models):
        group = [model for model in models if model.among == among]
        base = next((model for model in group if model.config.model.pattern == BASE), group[0])
        found += [(model, base) for model in group if model is not base]
    return found


SMALL = "too small to count"


@dataclass
class Compared:
    """Rows of a table of differences, and the comparisons in them, each once however many rows show it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    run_ids: list[list[str]] = field(default_factory=list)
    pairs: dict[Any, tuple[kit.Measured, kit.Measured]] = field(default_factory=dict)
    shown: dict[tuple[int, str], Any] = field(default_factory=dict)  # by row and value, a key of `pairs`
    counts: dict[Any, float] = field(default_factory=dict)  # the smallest share of the other's value that counts
    tested: int = 0  # comparisons with two seeds or more
    left_out: list[str] = field(default_factory=list)  # a sentence on seeds without a partner

    def add(
        self,
        row: dict[str, Any],
        both: dict[str, tuple[kit.Measured, kit.Measured]],
        changed: kit.Measured | None = None,
    ) -> None:
        """A row and its pairs of values by name; nothing where no seed has both.

        `changed` is the other model's FID, after `fid_change`.
        """
        found = {name: ours.minus(theirs) for name, (ours, theirs) in both.items()}
        known = {name: difference for name, difference in found.items() if difference}
        if not known:
            return
        for name in known:
            ours, theirs = both[name]
            if not ours.paired(theirs).any():  # nothing is compared, as where all scales are given and nothing is drawn
                row[f"{name}_verdict"] = "the same"
                continue
            key = row["model"], row["minus"], name, ours.by_seed, theirs.by_seed  # NLL is the same at any guidance
            self.pairs[key], self.shown[len(self.rows), name] = both[name], key
            if name == "fid":
                self.counts[key] = kit.COUNTS
            elif name == "fid_change" and changed and theirs.mean:  # of the FID before the change
                self.counts[key] = kit.COUNTS * abs((changed.mean - theirs.mean) / theirs.mean)
        self.rows.append(row | known | {"n": max(difference.n for difference in known.values())})
        self.run_ids.append(sorted({run for difference in known.values() for run in difference.run_ids}))

    def judge(self, values: dict[str, Shown]) -> dict[tuple[int, str], str]:
        """A word on each value of each row, corrected over all comparisons; the rows get it with its p."""
        higher = {name for name, shown in values.items() if shown.better == "higher"}
        decided = kit.judge(self.pairs, [key for key in self.pairs if key[2] in higher], self.counts)
        found = {}
        for (row, name), key in self.shown.items():
            word = decided[key].word if values[name].better else NEITHER.get(decided[key].word, decided[key].word)
            self.rows[row][f"{name}_verdict"] = decided[key].told.replace(decided[key].word, word, 1)
            found[row, name] = SMALL if decided[key].outcome == SMALL else word
        self.tested = sum(verdict.p is not None for verdict in decided.values())
        self.left_out = kit.left_out(decided.values())
        return found


def models_table(name: str, kind: type[Probe], models: list[ProbedModel]) -> kit.Table | None:
    """Every model minus the one that it is compared with, case by case; None where no two models share all else."""
    judged = [v for v in kind.values if v.better or (v.is_plotted and v.name != kind.axis)]
    cases = cases_of(kind, models)
    fields, compared = varying(kind, cases.values()), Compared()
    for model, base in against(models):
        for key, case in cases.items():
            there = {v.name: (model.value(key, v.name), base.value(key, v.name)) for v in judged}
            told = {f"case_{f.name}": written(case[f.name], f) for f in fields}
            both = {name: (ours, theirs) for name, (ours, theirs) in there.items() if ours and theirs}
            compared.add({"model": model.name, "minus": base.name, **told}, both, base.value(key, "fid"))
    if not compared.rows:
        return None
    found = compared.judge({v.name: v for v in judged})
    heads = [Column("model", "model", is_text=True), Column("minus", "minus", is_text=True)]
    heads += [Column(f"case_{f.name}", f.label, is_text=True) for f in fields]
    for v in (v for v in judged if any(name == v.name for _, name in found)):
        heads.append(Column(v.name, f"Δ {v.label}", columns.MEASURED, v.decimals))
        heads.append(Column(f"{v.name}_verdict", f"{v.label} is", is_text=True))
    heads.append(Column("n", "pairs of seeds", "", 0))
    title = f"Probe {name}, one model against another"
    told = models_reading(judged, compared, found)
    return kit.Table(f"probe-{name}-models", title, heads, compared.rows, compared.run_ids, reading=told)


def models_reading(judged: list[Shown], compared: Compared, found: dict[tuple[int, str], str]) -> list[str]:
    """What a verdict is, and how many there are of each pair of models and value."""
    lines = [
        "Differences are paired over the training seeds that both models have; in brackets the 95 % interval over "
        "them, each by itself. Better and worse (lower and higher, of a value of which neither is good) are verdicts "
        "of paired t-tests at 5 %, p corrected by Holm's method over those of this table's "
        f"{len(compared.pairs)} comparisons that have two pairs or more ({compared.tested}); all else is inconclusive, "
        "which is not equal. FID of one seed is one number: nothing follows from a difference of two. One of FID "
        f"counts from {kit.COUNTS:.1%} of the other model's on, one of its change from as much of the FID before it.",
        *compared.left_out,
    ]
    for pair in dict.fromkeys((row["model"], row["minus"]) for row in compared.rows):
        for v in judged:
            words = Counter(
                word
                for (row, name), word in found.items()
                if name == v.name and (compared.rows[row]["model"], compared.rows[row]["minus"]) == pair
            )
            order = ("better", "worse") if v.better else NEITHER.values()
            small = [SMALL] if words[SMALL] else []
            counts = ", ".join(f"{word} in {words[word]}" for word in (*order, *small, "inconclusive"))
            if words:
                what = f"{kit.prose(pair[0])} against {kit.prose(pair[1])}, {kit.prose(v.label)}"
                lines.append(f"{what}: {counts} of {words.total()} rows.")
    return lines


# Figure ---------------------------------------------------------------------------------------------------------------


def figure(name: str, kind: type[Probe], models: list[ProbedModel], directory: Path) -> kit.Figure:
    """A row of panels a value, a column for what else differs between cases, a line a model.

    Along an axis that is a value itself all cases share a panel, those of the largest group on a line.
    """
    cases = cases_of(kind, models)
    axis = next(shown for shown in (*kind.fields, *kind.values) if shown.name == (kind.axis or kind.fields[0].name))
    split = varying(kind, cases.values())[1:]
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, case in cases.items():
        groups.setdefault(tuple(written(case[f.name], f) for f in split), []).append(key)
    together = axis in kind.values
    panels = [groups] if together else [{group: keys} for group, keys in list(groups.items())[:MAX_PANELS]]
    values = [v for v in kind.values if v.is_plotted and v is not axis]
    layout = {"nrows": len(values), "ncols": len(panels), "sharex": True, "sharey": "row"}
    with kit.canvas(directory, f"probe-{name}", 0.5 + 2.1 * len(values), **layout) as (page, axes):
        for column, panel in enumerate(panels):
            for ax, value in zip(axes[:, column], values, strict=True):
                for model in models:
                    for number, (group, keys) in enumerate(panel.items()):
                        among = "" if len(keys) == max(map(len, panel.values())) else "\n" * number + ", ".join(group)
                        draw_line(ax, model, keys, axis, value, among)
                kit.despine(ax)
                if axis.decimals == 0 and not together:
                    ax.xaxis.get_major_locator().set_params(integer=True)
            axes[-1, column].set_xlabel(axis.label, fontsize="small")
            if not together:
                told = [f"{f.label} {text}" for f, text in zip(split, next(iter(panel)), strict=True)]
                axes[0, column].set_title("\n".join(told), fontsize="x-small")
        for ax, value in zip(axes[:, 0], values, strict=True):
            ax.set_ylabel(value.label, fontsize="small")
        kit.legend_below(page, axes[-1], "layers")
    left = f" {len(groups) - len(panels)} more are in the table alone." if len(groups) > MAX_PANELS else ""
    caption = (
        f"{first_sentence(kind)}. Bars: standard deviation over seeds, with one seed half of the 95 % interval over "
        f"images where there is one.{' Hollow: other cases than those of the line.' if together else ''}{left}"
    )
    return kit.Figure(f"probe-{name}", f"Probe {name}", caption)


def draw_line(ax: Any, model: ProbedModel, cases: list[str], axis: Shown, value: Shown, among: str) -> None:
    """One model's values along an axis, which is a field or a value itself; `among` names single points."""
    points = []
    for key in cases:
        x, y = model.value(key, axis.name), model.value(key, value.name)
        if x and y:
            half = model.value(key, value.name + HALF)
            bar = y.sd if y.sd is not None else half.mean if half else np.nan
            points.append((x.mean, y.mean, bar))
    if points:
        xs, ys, bars = zip(*sorted(points), strict=True)
        look = kit.mixer_look(model.config.model.pattern)
        if among:
            look |= {"linestyle": "none", "fillstyle": "none", "label": "_"}
            ax.annotate(among, (xs[0], ys[0]), (4, 4), textcoords="offset points", va="top", fontsize="x-small")
        ax.errorbar(xs, ys, yerr=bars, capsize=3, elinewidth=1, markersize=5, linewidth=1, **look)


def draw(page: kit.Writer) -> None:
    """A section a probe."""
    found, problems = probed_models(page.records)
    page.problems += problems
    for name, (kind, models) in found.items():
        page.section(f"Probe {name}")
        page.table(table(name, kind, models))
        if compared := models_table(name, kind, models):
            page.table(compared)
        page.figure(f"probe {name}", figure, name, kind, models, page.figures)


ANALYSIS = kit.Analysis("probes", "Probes: what was measured on trained models", draw, place=3)


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
