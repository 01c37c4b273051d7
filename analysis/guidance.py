"""Guidance: FID against its strength, and models compared at none, at one value, and each at its own best.

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
Found = dict[str, dict[float, pd.DataFrame]]  # model -> guidance -> finished evaluations


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """A table and a figure for each request of the experiment."""
    found = evaluations(page.records, manifest)
    asked = next((cell.axes["asked"] for cell in manifest.cells), 0.0)
    page.table(comparison(found, asked, manifest))
    page.figure(manifest.name, guidance_figure, found, manifest, page.figures)


def evaluations(records: kit.Records, manifest: kit.Manifest) -> Found:
    """What is there, by model and by guidance."""
    found: Found = {}
    for cell, rows in kit.cell_rows(records, manifest):
        if not rows.empty:
            found.setdefault(str(cell.axes["model"]), {})[float(cell.axes["cfg_scale"])] = rows
    return found


def of_seeds(rows: pd.DataFrame, seeds: list[int]) -> pd.DataFrame:
    """The evaluations of some sampling seeds."""
    return rows.loc[rows["sample_seed"].isin(seeds), :]


def best(found: Mapping[float, pd.DataFrame], seed: int) -> float | None:
    """The guidance of the lowest mean FID on one sampling seed; None where no evaluation of it is there."""
    means = {cfg: kit.aggregate(of_seeds(rows, [seed]), FID) for cfg, rows in found.items()}
    there = {cfg: value.mean for cfg, value in means.items() if value}
    return min(there, key=lambda cfg: there[cfg]) if there else None


def comparison(found: Found, asked: float, manifest: kit.Manifest) -> kit.Table:
    """The models in pairs: without guidance, at one value, each at its own best; a verdict on each."""
    models = list(found)
    seeds = sorted({int(seed) for values in found.values() for rows in values.values() for seed in rows["sample_seed"]})
    chosen_on, reported = (seeds[0], seeds[1:]) if len(seeds) > 1 else (None, seeds)
    settings: dict[str, dict[str, float | None]] = {
        "no guidance": dict.fromkeys(models, 0.0),
        f"all at cfg {asked:g}": dict.fromkeys(models, asked),
        "each at its best": {m: None if chosen_on is None else best(found[m], chosen_on) for m in models},
    }
    rows, run_ids, pairs = [], [], {}
    for label, values in settings.items():
        row: dict[str, Any] = {"label": label}
        ids: set[str] = set()
        for model, cfg in values.items():
            there = found[model].get(cfg) if cfg is not None else None
            if there is None:
                continue
            there = of_seeds(there, reported)
            row |= {f"{model} cfg": cfg, f"{model} fid": kit.aggregate(there, FID)}
            row[f"{model} second"] = kit.aggregate(there, SECOND)
            ids |= set(there["run_id"])
        if len(models) == 2 and all(row.get(f"{model} fid") for model in models):
            pairs[label] = (row[f"{models[1]} fid"], row[f"{models[0]} fid"])
        rows.append(row)
        run_ids.append(sorted(ids))
    verdicts = kit.judge(pairs)
    for row in rows:
        row["verdict"] = verdicts[row["label"]].told if row["label"] in verdicts else None
    title = f"Guidance, {' and '.join(models)}: {manifest.title}"
    reading = _reading(models, chosen_on, reported)
    return kit.Table(f"{manifest.name}-pairs", title, _columns(models), rows, run_ids, reading=reading)


def _columns(models: list[str]) -> list[Column]:
    shown = [columns.name("guidance")]
    for model in models:
        shown += [
            Column(f"{model} cfg", f"{model}: cfg", "", 2),
            Column(f"{model} fid", f"{model}: FID ↓", columns.MEASURED),
            Column(f"{model} second", f"{model}: KID ↓", columns.MEASURED, 4),
        ]
    second = models[1] if len(models) == 2 else "the second"
    return [*shown, Column("verdict", f"FID of {second} is", is_text=True)]


def _reading(models: list[str], chosen_on: int | None, reported: list[int]) -> list[str]:
    if not models:
        return ["Nothing is measured yet."]
    if chosen_on is None:
        return ["The best guidance of a model is chosen on images that are not reported: --sample-seeds 2 draws more."]
    told = ", ".join(map(str, reported))
    return [
        f"The best is that of the lowest mean FID on sampling seed {chosen_on}, whose numbers are in no cell here: "
        f"all are of sampling seed{'s' * (len(reported) > 1)} {told}. Verdicts are of t-tests paired by training "
        "seed, p corrected by Holm's method over the table."
    ]


def guidance_figure(found: Found, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """FID against guidance; precision against recall and FID against IS along it.

    Raises:
        UserError: no evaluation to draw.
    """
    if not found:
        raise UserError(f"figure {manifest.name}: no finished run to draw")
    with kit.canvas(directory, manifest.name, 2.7, ncols=3) as (figure, axes):
        by_cfg, by_recall, by_is = axes[0]
        for values in found.values():
            pattern = next(iter(values.values()))["pattern"].iloc[0]
            look = kit.mixer_look(pattern)
            fid = {cfg: value for cfg in sorted(values) if (value := kit.aggregate(values[cfg], FID))}
            kit.points(by_cfg, list(fid), list(fid.values()), **look)
            for ax, x, y in ((by_recall, "eval/recall", "eval/precision"), (by_is, "eval/is", FID)):
                pairs = [(kit.aggregate(values[cfg], x), kit.aggregate(values[cfg], y)) for cfg in fid]
                there = [(a.mean, b.mean) for a, b in pairs if a and b]
                ax.plot([a for a, _ in there], [b for _, b in there], **look)
                if there:
                    ax.annotate("0", there[0], (3, 3), textcoords="offset points", fontsize=6.5)
                    ax.annotate(f"{max(fid):g}", there[-1], (3, 3), textcoords="offset points", fontsize=6.5)
        by_cfg.set(xlabel="guidance (cfg)", ylabel="FID ↓")
        by_recall.set(xlabel="recall ↑", ylabel="precision ↑")
        by_is.set(xlabel="IS ↑", ylabel="FID ↓")
        kit.legend_below(figure, by_cfg, "mixers")
        kit.despine(*axes[0])
    caption = (
        "One training a model and seed, sampled at several strengths of guidance. Left: bars are standard deviations "
        "over training seeds. Middle and right: means along the strengths, whose ends are marked."
    )
    return kit.Figure(manifest.name, f"Guidance: {manifest.title}", caption)


ANALYSIS = kit.Analysis("guidance", "FID against guidance", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
