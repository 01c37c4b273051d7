"""Guidance: FID against its strength, and models compared at none, at one value, and each at its own best.

Of the experiment `guidance`, and of every grid whose rows differ in `sample.cfg_scale`, as `mvar evaluate RUN ...
--cfg-scale` makes them.

python analysis/guidance.py --results results
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mvar import Column, UserError, columns
from mvar import analysis as kit

FID, SECOND = "eval/fid", "eval/kid"  # what the best is chosen by, and what is shown beside it
CFG = "cfg_scale"
SETTINGS = (CFG, "top_p", "top_k", "ema")  # as the experiment's rows have them; a grid's fields begin with `sample.`
NAMES = {CFG: "cfg", "top_p": "top-p", "top_k": "top-k", "ema": "EMA"}
Setting = tuple[tuple[str, Any], ...]  # field of the sampling -> value, in order
Found = dict[str, dict[Setting, pd.DataFrame]]  # model -> setting -> finished evaluations


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """A table and a figure for each request of the experiment."""
    found = evaluations(page.records, manifest)
    asked = asked_of(manifest)
    page.table(comparison(found, asked, manifest))
    page.figure(f"guidance-{manifest.tag}", guidance_figure, found, asked, manifest, page.figures)


def evaluations(records: kit.Records, manifest: kit.Manifest) -> Found:
    """What is there, by model and by setting."""
    found: Found = {}
    for cell, rows in kit.cell_rows(records, manifest):
        if not rows.empty:
            model = model_of(cell.axes) or str(rows["pattern"].iloc[0])
            found.setdefault(model, {})[setting_of(cell.axes)] = rows
    return found


def model_of(axes: Mapping[str, Any]) -> str:
    """What a row's model is called: as the experiment says, else by what the rows' trainings differ in."""
    if "model" in axes:
        return str(axes["model"])
    trained = {field: value for field, value in axes.items() if not field.startswith("sample.")}
    if len(trained) == 1:
        return str(next(iter(trained.values())))
    return ", ".join(f"{field.rpartition('.')[2]}={value}" for field, value in trained.items())


def setting_of(axes: Mapping[str, Any]) -> Setting:
    """How a row is sampled: the fields that rows differ in."""
    ours = {field: value for field, value in axes.items() if field in SETTINGS}
    of_grid = {field.removeprefix("sample."): v for field, v in axes.items() if field.startswith("sample.")}
    return tuple(sorted((field, number(value)) for field, value in {**ours, **of_grid}.items()))


def asked_of(manifest: kit.Manifest) -> Setting:
    """The request's own setting, in the fields that its rows differ in."""
    fields = dict.fromkeys(field for cell in manifest.cells for field, _ in setting_of(cell.axes))
    sample = manifest.config.sample.model_dump(mode="json")
    return tuple(sorted((field, number(sample.get(field))) for field in fields))


def number(value: Any) -> Any:
    """A value that is typed as a number, as one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def at(setting: Setting, **values: Any) -> Setting:
    """The setting with other values of some fields."""
    return tuple(sorted({**dict(setting), **values}.items()))


def told(setting: Setting, asked: Setting) -> str:
    """The strength, and what else is not as asked: `cfg 0.5, top-p 0.8`."""
    usual = dict(asked)
    parts = [(name, value) for name, value in setting if name == CFG or value != usual.get(name)]
    texts = [(NAMES.get(name, name), f"{v:g}" if isinstance(v, float) else str(v)) for name, v in parts]
    return ", ".join(f"{name} {value}" for name, value in texts)


def of_seeds(rows: pd.DataFrame, seeds: list[int]) -> pd.DataFrame:
    """The evaluations of some sampling seeds."""
    return rows.loc[rows["sample_seed"].isin(seeds), :]


def best(found: Mapping[Setting, pd.DataFrame], seed: int) -> Setting | None:
    """The setting of the lowest mean FID on one sampling seed; None where no evaluation of it is there."""
    means = {setting: kit.aggregate(of_seeds(rows, [seed]), FID) for setting, rows in found.items()}
    there = {setting: value.mean for setting, value in means.items() if value}
    return min(there, key=lambda setting: there[setting]) if there else None


def sampling_seeds(found: Found) -> tuple[int | None, list[int]]:
    """The sampling seed that the best setting is chosen on, and those that are reported."""
    tables = [rows for values in found.values() for rows in values.values()]
    return kit.chosen_and_reported({int(seed) for rows in tables for seed in rows["sample_seed"]})


def comparison(found: Found, asked: Setting, manifest: kit.Manifest) -> kit.Table:
    """The models: without guidance, at one setting, each at its own best; a verdict on each against the first."""
    models = list(found)
    chosen_on, reported = sampling_seeds(found)
    settings: dict[str, dict[str, Setting | None]] = {
        "no guidance": dict.fromkeys(models, at(asked, **{CFG: 0.0})),
        f"all at {told(asked, asked)}": dict.fromkeys(models, asked),
        "each at its best": {m: None if chosen_on is None else best(found[m], chosen_on) for m in models},
    }
    rows, run_ids = [], []
    pairs: dict[tuple[int, str, str], tuple[kit.Measured, kit.Measured]] = {}
    for number, (label, values) in enumerate(settings.items()):
        row: dict[str, Any] = {"label": label}
        ids: set[str] = set()
        for model, setting in values.items():
            there = found[model].get(setting) if setting is not None else None
            if setting is None or there is None:
                continue
            there = of_seeds(there, reported)
            row |= {f"{model} at": told(setting, asked), f"{model} {FID}": kit.aggregate(there, FID)}
            row[f"{model} {SECOND}"] = kit.aggregate(there, SECOND)
            ids |= set(there["run_id"])
        for model in models[1:]:
            for key in (FID, SECOND):
                ours, first = row.get(f"{model} {key}"), row.get(f"{models[0]} {key}")
                if ours and first:
                    pairs[number, model, key] = ours, first
        rows.append(row)
        run_ids.append(sorted(ids))
    counts = manifest.experiment.counts
    verdicts = kit.judge(pairs, counts={pair: counts for pair in pairs if pair[2] == FID})
    for (number, model, key), verdict in verdicts.items():
        rows[number] |= {f"{model} {key} verdict": verdict.told, f"{model} {key} needed": verdict.needed}
    title = f"Guidance, {' and '.join(models)}: {manifest.title}"
    shown = [[value for row in rows for m in models if (value := row.get(f"{m} {key}"))] for key in (FID, SECOND)]
    spreads = zip(map(kit.pooled, shown), (("FID", 1), ("KID (× 1000)", 1000)), strict=True)
    reading = [
        *_reading(models, chosen_on, reported, counts),
        *(spread.told(*of) for spread, of in spreads if spread),
        *kit.left_out(verdicts.values()),
    ]
    return kit.Table(f"{manifest.name}-pairs", title, _columns(models), rows, run_ids, reading=reading)


def _columns(models: list[str]) -> list[Column]:
    shown = [columns.name("guidance")]
    for model in models:
        shown += [
            Column(f"{model} at", f"{model}", is_text=True),
            Column(f"{model} {FID}", f"{model}: FID ↓", columns.MEASURED),
            Column(f"{model} {SECOND}", f"{model}: KID ↓ (× 1000)", columns.MEASURED, 2, 1000),
        ]
    for model in models[1:]:
        for key, name in ((FID, "FID"), (SECOND, "KID")):
            shown.append(Column(f"{model} {key} verdict", f"{name} of {model} is", is_text=True))
            shown.append(Column(f"{model} {key} needed", f"seeds that this {name} needs", "", 0))
    return shown


def _reading(models: list[str], chosen_on: int | None, reported: list[int], counts: float) -> list[str]:
    if not models:
        return ["Nothing is measured yet."]
    sentences = ["The best guidance of a model is chosen on images that are not reported: --sample-seeds 2 draws more."]
    if chosen_on is not None:
        seeds = ", ".join(map(str, reported))
        sentences = [
            f"The best is that of the lowest mean FID on sampling seed {chosen_on}, whose numbers are in no cell here "
            f"and in no figure: all are of sampling seed{'s' * (len(reported) > 1)} {seeds}. So are the table of "
            "settings and its differences."
        ]
    if len(models) > 1:
        sentences.append(
            f"Verdicts are against {models[0]}, by t-tests paired by training seed, p corrected by Holm's method over "
            f"this table, both metrics together. A difference of FID counts from {counts:.1%} of {models[0]}'s on. "
            "Seeds needed: at which one of the size and scatter seen here is found in 80 % of trials, after correction."
        )
    return sentences


def looks(found: Found) -> dict[str, dict[str, Any]]:
    """Colour and marker of each model, by its layers, or by its number where several have the same; its name."""
    patterns = {model: str(next(iter(values.values()))["pattern"].iloc[0]) for model, values in found.items()}
    if len(set(patterns.values())) == len(patterns):
        return {m: kit.mixer_look(pattern) | {"label": kit.figure_text(m)} for m, pattern in patterns.items()}
    return {m: {"color": f"C{n}", "marker": "o", "label": kit.figure_text(m)} for n, m in enumerate(patterns)}


def guidance_figure(found: Found, asked: Setting, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """FID against guidance; precision against recall and FID against IS along it.

    Raises:
        UserError: no evaluation to draw.
    """
    if not found:
        raise UserError(f"figure {manifest.name}: no finished run to draw")
    chosen_on, reported = sampling_seeds(found)
    with kit.canvas(directory, f"guidance-{manifest.tag}", 2.7, ncols=3) as (figure, axes):
        by_cfg, by_recall, by_is = axes[0]
        of_models = looks(found)
        for model, values in found.items():
            look = of_models[model]
            along = {
                dict(setting)[CFG]: of_seeds(rows, reported)
                for setting, rows in values.items()
                if setting == at(asked, **{CFG: dict(setting)[CFG]})
            }
            fid = {cfg: value for cfg in sorted(along) if (value := kit.aggregate(along[cfg], FID))}
            kit.band(by_cfg, list(fid), list(fid.values()), **look)
            for ax, x, y in ((by_recall, "eval/recall", "eval/precision"), (by_is, "eval/is", FID)):
                pairs = [(kit.aggregate(along[cfg], x), kit.aggregate(along[cfg], y)) for cfg in fid]
                there = [(a.mean, b.mean) for a, b in pairs if a and b]
                ax.plot([a for a, _ in there], [b for _, b in there], **look)
                if there:
                    ax.annotate(f"{min(fid):g}", there[0], (3, 3), textcoords="offset points", fontsize=6.5)
                    ax.annotate(f"{max(fid):g}", there[-1], (3, 3), textcoords="offset points", fontsize=6.5)
        by_cfg.set(xlabel="guidance (cfg)", ylabel="FID ↓")
        by_recall.set(xlabel="recall ↑", ylabel="precision ↑")
        by_is.set(xlabel="IS ↑", ylabel="FID ↓")
        kit.legend_below(figure, [by_cfg], "models")
        kit.despine(*axes[0])
    caption = (
        "One training a model and seed, sampled at several strengths of guidance, all else as asked. Left: bands are "
        "standard deviations over training seeds. Middle and right: means along the strengths, whose ends are marked."
    )
    if chosen_on is not None:
        caption += f" Sampling seed {chosen_on}, on which the best is chosen, is left out."
    return kit.Figure(f"guidance-{manifest.tag}", f"Guidance: {manifest.title}", caption)


ANALYSIS = kit.Analysis("guidance", "FID against guidance", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
