"""Table 1b: what attention looks at beside what it is for, the mass on keys and the effect of cutting them.

mvar knockout RUN --results results
python analysis/knockout.py --results results
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvar import MAX_IMAGES, Column, columns
from mvar import analysis as kit

COLUMNS = (
    Column("model", "model", is_text=True),
    columns.name("cut"),
    Column("mass", "mass (%)", columns.MEASURED, 1, 100),
    Column("entropy", "attention's entropy (nats)", columns.MEASURED, 2),
    Column("kept", "pairs left (%)", columns.ANALYTIC, 1, 100),
    Column("change", "change (bits/token)", columns.MEASURED, 3),
    Column("change_over_seeds", "change, 95 %: ± over seeds", columns.MEASURED, 3, in_print=False),
    columns.over_images("half_width", 3),
    Column("control", "random instead", columns.MEASURED, 3),
    Column("draws", "random cuts", "", 0, in_print=False),
    Column("beyond", "beyond random", columns.MEASURED, 3),
    Column("beyond_over_seeds", "beyond, 95 %: ± over seeds", columns.MEASURED, 3, in_print=False),
    Column("beyond_half_width", "± over images and draws", columns.MEASURED, 3),
    Column("verdict", "verdict", is_text=True),
    Column("n", "seeds", "", 0),
)
BY_SCALE = (*COLUMNS[:2], Column("scale", "tokens of", is_text=True), *COLUMNS[5:])
CUTS = (
    *COLUMNS[:2],
    Column("queries", "queries of", is_text=True),
    Column("keys", "keys of", is_text=True),
    *COLUMNS[2:-2],
    COLUMNS[-1],
)
FIDS = (
    Column("fid", "FID", columns.MEASURED, 2),
    Column("fid_change", "change of FID", columns.MEASURED, 2),
    Column("fid_control", "change of FID, random instead", columns.MEASURED, 2),
)
KINDS = {"cut": "nothing", "mean": "its mean over images", "resample": "another image's"}
BY_KIND = (*COLUMNS[:2], Column("kind", "what stands there", is_text=True), *COLUMNS[5:])
BY_FID = (
    *COLUMNS[:2],
    Column("images", "drawn images", "", 0),
    Column("fid", "FID", columns.MEASURED, 2),
    Column("change", "change of FID", columns.MEASURED, 2),
    Column("draws", "random cuts", "", 0),
    *(replace(column, decimals=2) for column in COLUMNS if column.key in ("control", "beyond")),
    Column("half_width", "± over random cuts", columns.MEASURED, 2),
    *COLUMNS[-2:],
)
BESIDE_RANDOM = {"better": "less harm than random", "worse": "more harm than random"}
BESIDE_NONE = {"better": "a gain", "worse": "harm"}  # of a branch or a state, beside nothing cut
RANKS = {"better": "more mass, more effect", "worse": "more mass, less effect"}


# Table 1b -------------------------------------------------------------------------------------------------------------


def table1b(models: list[kit.CutModel]) -> kit.Table:
    """Mass and effect of whole parts, and a verdict on each: against random keys, or where none are against nothing."""
    rows: list[dict[str, Any]] = []
    pairs: dict[Any, tuple[kit.Measured, kit.Measured]] = {}
    for at, model in enumerate(models):
        ranks = {(at, name): kit.ranks.rank_correlation(points) for name, points in kit.ranks.points_of(model).items()}
        pairs |= {key: (rho, nothing(rho)) for key, rho in ranks.items() if rho}
        for cut in model.parts():
            row = model.row(cut)
            pairs[len(rows)] = (row["change"], row["control"] or nothing(row["change"]))
            rows.append(row | model.attended(cut) | {"kept": model.kept(cut)})
    verdicts = kit.judge(pairs, higher_is_better=[key for key in pairs if isinstance(key, tuple)])
    for number, row in enumerate(rows):
        row["verdict"] = told(verdicts[number], BESIDE_RANDOM if row["control"] else BESIDE_NONE)
    reading = [*_reading(rows, verdicts), *_ranks_reading(models, pairs, verdicts)]
    title = "Table 1b: attention mass and effect of a cut"
    return kit.Table("table1b", title, COLUMNS, rows, _run_ids(rows), reading=reading, caption=images_of(models))


def images_of(models: list[kit.CutModel]) -> str:
    """What the numbers of a table are of."""
    images = _counts(found.num_images for model in models for found in model.found.values())
    maps = _counts(stats.num_images for model in models for stats in model.attention.values())
    attention = f", of mass and entropy {maps}" if maps and maps != images else ""
    return f"{images} held-out images a run{attention}."


def _counts(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:,}" for number in sorted(set(numbers)))


def every_cut(models: list[kit.CutModel]) -> kit.Table:
    """A row for each cut of each model, those of single scales, layers and heads too; none has a verdict."""
    rows: list[dict[str, Any]] = []
    for model in models:
        sides = [f"{side}×{side}" for side in model.config.tokenizer.patch_sides]
        for cut in model.cuts():
            where = {name: None if k is None else sides[k] for name, k in kit.scales_of(cut).items()}
            fids = {column.key: model.fid(cut, column.key) for column in FIDS}
            rows.append(model.row(cut) | model.attended(cut) | where | fids | {"kept": model.kept(cut)})
    shown = (*CUTS, *FIDS) if any(row["fid"] for row in rows) else CUTS
    caption = f"{images_of(models)} Mass and entropy are of the queries, heads and layers that a cut is in."
    return kit.Table("table1b-cuts", "All cuts", shown, rows, _run_ids(rows), caption=caption)


def by_scale(models: list[kit.CutModel]) -> kit.Table | None:
    """The change of each scale's tokens beside that with random keys; None where none has controls by scale."""
    rows: list[dict[str, Any]] = []
    pairs: dict[Any, tuple[kit.Measured, kit.Measured]] = {}
    for model in models:
        for cut, (scale, side) in product(model.parts(), enumerate(model.config.tokenizer.patch_sides)):
            if not any(effect.controls_by_scale for effect in model.effects(cut).values()):
                continue
            row = model.row(cut, scale)
            if not np.allclose(row["change"].paired(row["control"]), 0, rtol=0, atol=1e-12):
                pairs[len(rows)] = (row["change"], row["control"])
            rows.append(row | {"scale": f"{side}×{side}"})
    about = (
        "The cuts are those of Table 1b, the random ones too; a row's changes are those of the tokens of one scale. "
        "The same: of each of its queries all keys are cut, or none, so that random ones are the same keys."
    )
    return _beside_random("table1b-scales", "Table 1b by scale", BY_SCALE, rows, pairs, about) if rows else None


def by_kind(models: list[kit.CutModel]) -> kit.Table | None:
    """The change by what stands in for what is cut; None where nothing ever did."""
    rows: list[dict[str, Any]] = []
    pairs: dict[Any, tuple[kit.Measured, kit.Measured]] = {}
    for model in models:
        for part, kind in product(model.parts(), KINDS):
            cut = part if kind == "cut" else f"{part},kind={kind}"
            if any(f"{part},kind={other}" in model.cuts() for other in KINDS) and cut in model.cuts():
                row = model.row(cut)
                pairs[len(rows)] = (row["change"], row["control"] or nothing(row["change"]))
                rows.append(row | {"label": part, "kind": KINDS[kind]})
    about = "In place of the keys and values of the cut pairs, of a branch or of a state; of random pairs too."
    return _beside_random("table1b-kinds", "Table 1b by what stands in", BY_KIND, rows, pairs, about) if rows else None


def by_fid(models: list[kit.CutModel]) -> kit.Table | None:
    """FID of images that are drawn with a cut, beside that with random keys; None where none was measured."""
    rows: list[dict[str, Any]] = []
    pairs: dict[Any, tuple[kit.Measured, kit.Measured]] = {}
    for model in models:
        for cut in model.parts(of_all_kinds=True):
            change, control = model.fid(cut, "fid_change"), model.fid(cut, "fid_control")
            if change is None:
                continue
            half, drawn = model.fid(cut, "fid_beyond_half_width"), model.effects(cut).values()
            if control or not any(effect.controls for effect in drawn):
                pairs[len(rows)] = (change, control or nothing(change))
            row = {"model": model.name, "label": cut, "fid": model.fid(cut, "fid"), "change": change, "n": change.n}
            row |= {"images": max(e.fid_images for e in drawn), "draws": min(len(e.fid_controls) for e in drawn)}
            row |= {"control": control, "beyond": model.fid(cut, "fid_beyond"), "half_width": kit.over_images(half)}
            rows.append(row)
    about = (
        "Images are drawn by the run's own settings, with the same random numbers whatever is cut. FID is one number "
        "of a whole set: ± is half of the 95 % t interval over random cuts of one run, and has no part of images."
    )
    return _beside_random("table1b-fid", "Table 1b by FID", BY_FID, rows, pairs, about) if rows else None


def _beside_random(
    name: str,
    title: str,
    shown: tuple[Column, ...],
    rows: list[dict[str, Any]],
    pairs: Mapping[Any, tuple[kit.Measured, kit.Measured]],
    about: str,
) -> kit.Table:
    """A table with verdicts on changes beside random ones, or beside none, corrected over it alone."""
    verdicts = kit.judge(pairs)
    for number, row in enumerate(rows):
        words = BESIDE_RANDOM if row["control"] else BESIDE_NONE
        otherwise = "the same" if row["control"] else kit.DASH
        row["verdict"] = told(verdicts[number], words) if number in pairs else otherwise
    tested = sum(verdict.p is not None for verdict in verdicts.values())
    judged = (
        "Verdicts are paired t-tests over training seeds at 5 %, of keys against random ones, of a branch or a state "
        f"against no cut; p is corrected by Holm's method over the {tested} of this table that have two seeds or more."
    )
    return kit.Table(name, title, shown, rows, _run_ids(rows), reading=[about, judged])


def _run_ids(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [list(row["change"].run_ids) for row in rows]


def nothing(change: kit.Measured) -> kit.Measured:
    """Zero at the same seeds."""
    zero = kit.Measured.of(pd.Series({seed: 0.0 for seed, _ in change.by_seed}))
    assert zero is not None  # what is measured has a seed
    return zero


def told(verdict: kit.Verdict, words: Mapping[str, str]) -> str:
    """For a table or a sentence: what a comparison says, with p, or what is missing."""
    if verdict.p is None:
        return verdict.told
    return f"{words.get(verdict.word, verdict.word)} (p {kit.p_text(verdict.p)})"


def _reading(rows: list[dict[str, Any]], verdicts: Mapping[Any, kit.Verdict]) -> list[str]:
    tested = sum(verdict.p is not None for verdict in verdicts.values())
    lines = [
        "Keys are masked before the softmax in all layers, the rest of the model is as it was trained. Change: of the "
        "held-out likelihood in bits a token, more is worse. Random instead: as many keys cut of every query, at "
        "random among all that it sees, the cut ones included, mean over draws. ±: standard deviation over seeds; "
        "95 %: half of the t interval of the mean over seeds; "
        f"{kit.OVER_IMAGES}; over images and draws: that of what is beyond random.",
        "A cut measures what the trained model does without a part, not what a model trained without it would do.",
        "Mass and entropy are measured of global attention: of models in which other mixers have keys too, intra, "
        "markov or window, they are dashes.",
        "Verdicts are paired t-tests over training seeds at 5 %: of keys against random ones, of a branch or a state "
        "against no cut, of a rank correlation against 0. p is corrected by Holm's method over all "
        f"{tested} of them that have two seeds or more; all else is inconclusive.",
    ]
    for row in rows:
        mass = f", {row['mass'].mean:.1%} of the mass," if row["mass"] else ""
        what, change = f"{kit.prose(row['model'])}: ", f"{row['change'].mean:+.3f} bits a token"
        if row["control"]:
            what += f"keys of {kit.code(row['label'])}{mass} cost {change}, as many random ones "
            lines.append(f"{what}{row['control'].mean:+.3f}. Less or more than random: {row['verdict']}.")
        else:
            what += f"{kit.code(row['label'])} taken away costs {change}"
            lines.append(f"{what}, with no random control beside it. Against no cut: {row['verdict']}.")
    return lines


def _ranks_reading(
    models: list[kit.CutModel],
    pairs: Mapping[Any, tuple[kit.Measured, kit.Measured]],
    verdicts: Mapping[Any, kit.Verdict],
) -> list[str]:
    """A sentence on each rank correlation, which says what its points are and no more than its verdict."""
    lines = []
    for at, model in enumerate(models):
        for name, by_seed in kit.ranks.points_of(model).items():
            if (at, name) in pairs:
                rho, count = pairs[at, name][0], max(map(len, by_seed.values()))
                lines.append(
                    f"{kit.prose(model.name)}, {name}: rank correlation of mass and effect "
                    f"{kit.ranks.interval_text(rho)} over {count} points ({kit.ranks.POINTS[name]}): "
                    f"{told(verdicts[at, name], RANKS)}."
                )
    return lines


# Figures --------------------------------------------------------------------------------------------------------------


def matrices_figure(model: kit.CutModel, name: str, directory: Path) -> kit.Figure:
    """From scale to scale: what cutting the attention costs, beside its mass where the model has attention maps."""
    by_seed, sides = model.effects_by_scale(), model.config.tokenizer.patch_sides
    names = [f"{side}×{side}" for side in sides]
    with_mass, mass = bool(model.attention), "mass" if model.has_all_mass else "mass in the global layers"
    layout = {"ncols": 2} if with_mass else {"width": kit.COLUMN}
    with kit.canvas(directory, name, 3.1, **layout) as (_, axes):
        if with_mass:
            kit.draw_flow(axes[0, 0], model.mass_by_scale(), sides, model.entropy_by_scale())
        kit.draw_changes(axes[0, -1], np.mean(list(by_seed.values()), axis=0), names, names)
        for ax, title in zip(axes[0], [mass, "effect of the cut"][-len(axes[0]) :], strict=True):
            ax.set(xlabel="keys of scale", ylabel="queries of scale", title=title)
    where = "" if model.has_all_mass else "in the layers with global attention, "
    left = f"Left: {where}where the mass of each scale's queries lies, and its entropy. Right: w" if with_mass else "W"
    caption = (
        f"{left}hat it costs, over all tokens, when keys of a scale are cut for queries of a scale in every mixer "
        f"that has keys. White: not seen, or not cut. Mean over {len(by_seed)} seed{'s' * (len(by_seed) > 1)}."
    )
    title = "Mass and effect" if with_mass else "Effect of cuts"
    return kit.Figure(name, f"{title} from scale to scale: {model.name}", caption)


def heads_figure(model: kit.CutModel, name: str, directory: Path) -> kit.Figure:
    """By layer and head: what cutting the own scale or coarser ones costs; mass and entropy where they are known."""
    found = {target: by_seed for target in ("own", "coarser") if (by_seed := model.effects_by_head(target))}
    layers, heads = (list(map(str, range(n))) for n in (model.config.model.depth, model.config.model.num_heads))
    titles = [*(["mass, own scale", "entropy"] if model.attention else []), *(f"{target} cut" for target in found)]
    rows = 2 if len(titles) > 3 and 2 * len(heads) > len(layers) else 1  # high ones have room for four in a row
    grid = {"nrows": rows, "ncols": len(titles) // rows, "width": kit.WIDTH * min(1, len(titles) / 3)}
    with kit.canvas(directory, name, 3.1 * rows, **grid) as (_, axes):
        if model.attention:
            kit.draw_mass(axes.flat[0], model.mass_by_head(), layers, heads)
            kit.draw_entropies(axes.flat[1], model.entropy_by_head(), layers, heads)
        for ax, by_seed in zip(axes.flat[-len(found) :], found.values(), strict=True):
            kit.draw_changes(ax, np.mean(list(by_seed.values()), axis=0), layers, heads)
        for ax, title in zip(axes.flat, titles, strict=True):
            ax.set(xlabel="head", ylabel="layer", title=title)
    mass = (
        "Mass: what a head with global attention puts on its own scale; the rest is on coarser ones. Entropy: of all "
        "that it looks at. "
    )
    seeds = ", ".join(f"{len(by_seed)} of {target}" for target, by_seed in found.items())
    caption = (
        f"{mass if model.attention else ''}Cut: what it costs, over all tokens, when one head of one layer, of every "
        f"mixer in it that has keys, loses those of the own scale or of coarser ones. White: not cut, or no such mass. "
        f"Means over seeds: {seeds}."
    )
    title = "Mass and effect" if model.attention else "Effect of cuts"
    return kit.Figure(name, f"{title} by layer and head: {model.name}", caption)


def scatter_figure(model: kit.CutModel, name: str, directory: Path) -> kit.Figure:
    """Mass against effect, one point a pair of scales, and one a layer or head."""
    shown = kit.ranks.points_of(model)
    with kit.canvas(directory, name, 2.9, ncols=len(shown)) as (_, axes):
        for ax, (title, by_seed) in zip(axes[0], shown.items(), strict=True):
            xs, ys = kit.ranks.mean_points(by_seed)
            ax.axhline(0, color="0.6", linewidth=0.8)
            ax.scatter(100 * xs, 1000 * ys, s=18, color=kit.mixer_look("global")["color"], alpha=0.8)
            rho = kit.ranks.rank_correlation(by_seed)
            ax.set(xlabel="attention mass (%)", ylabel="change (millibits a token)")
            ax.set_title(f"{title}: rank correlation\n{kit.ranks.interval_text(rho) if rho else '—'}", fontsize="small")
            kit.despine(ax)
    what = {
        kit.ranks.PAIRS: "keys of a scale for queries of a scale, all layers.",
        kit.ranks.HEADS: "keys of the own or of the coarser scales in one layer or head.",
    }
    panels = [what[panel] for panel in shown]
    where = f": {panels[0]}" if len(panels) == 1 else f". Left: {panels[0]} Right: {panels[1]}"
    caption = f"A cut's cost against the mass that it takes away{where}"
    if any(len(by_seed) > 1 for by_seed in shown.values()):
        caption += " Points: means over seeds. Brackets: 95 % t interval over seeds."
    return kit.Figure(name, f"Mass against effect: {model.name}", caption)


def draw(page: kit.Writer) -> None:
    """Table 1b of all models; their matrices by scales, and the scatter of those whose mass is known."""
    models, problems = kit.cut_models(page.records)
    page.problems += problems
    for limit, those in groupby(models, lambda model: model.limit):
        draw_alike(page, list(those), "" if limit == MAX_IMAGES else f"images-{limit}")


def draw_alike(page: kit.Writer, models: list[kit.CutModel], tag: str) -> None:
    """The tables and figures of what was measured on the same number of images; `tag` is at the end of their names."""
    more = f", at most {models[0].limit:,} images" if tag else ""
    page.section(f"Table 1b: mass and effect{more}")
    tables = [table1b(models)] if any(model.parts() for model in models) else []
    tables += filter(None, (by_scale(models), by_kind(models), by_fid(models)))
    for table in tables:
        page.table(tagged(table, tag, more))
    page.csv(tagged(every_cut(models), tag, more))
    draw_figures(page, models, tag)


def tagged(table: kit.Table, tag: str, more: str) -> kit.Table:
    """A table by a name and a title that say how many images it is of."""
    return replace(table, name="-".join(filter(None, (table.name, tag))), title=f"{table.title}{more}")


def draw_figures(page: kit.Writer, models: list[kit.CutModel], tag: str) -> None:
    """Of each model what was measured of pairs of scales and of heads."""
    numbers: dict[str, int] = defaultdict(int)
    for model in models:
        data = model.config.data.name
        by_head = model.effects_by_head("own") or model.effects_by_head("coarser")
        if not model.effects_by_scale() and not by_head:
            continue
        name = "-".join(filter(None, (data, f"{numbers[data] or ''}", tag)))
        numbers[data] += 1
        if model.effects_by_scale():
            page.figure(f"matrices {name}", matrices_figure, model, f"knockout-matrices-{name}", page.figures)
        if by_head:
            page.figure(f"heads {name}", heads_figure, model, f"knockout-heads-{name}", page.figures)
        if kit.ranks.points_of(model):
            page.figure(f"scatter {name}", scatter_figure, model, f"knockout-scatter-{name}", page.figures)


ANALYSIS = kit.Analysis("knockout", "Table 1b: attention mass and effect of cuts", draw, place=2)


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
