"""Between scales: every partner of `intra` against M-VAR's Mamba, as asked and each at its own guidance.

python analysis/inter_scale.py --results results
"""

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mvar import Column, RunConfig, UserError, columns, state_bytes
from mvar import analysis as kit

FID, NLL = "eval/fid", "eval/nll_bits_per_token"
SCORES = {"nll": "held-out NLL", "fid": "FID as asked", "own_fid": "FID at its own cfg"}
AXES = {
    "nll": "NLL ↓ (bits per token)",
    "fid": "FID ↓ as asked",
    "own_fid": "FID ↓ at its own guidance",
}
COLUMNS = (
    columns.name("layers, size"),
    Column("against", "compared with", is_text=True),
    columns.PARAMETERS,
    Column("state_bytes", "state of an image (bytes)", columns.ANALYTIC, None),
    columns.NLL,
    Column("nll_verdict", "NLL is", is_text=True),
    Column("nll_needed", "seeds that this NLL needs", "", 0),
    columns.FID,
    Column("fid_verdict", "FID is", is_text=True),
    Column("fid_needed", "seeds that this FID needs", "", 0),
    Column("own_cfg", "own cfg", "", 2),
    Column("own_fid", "FID at its own cfg ↓", columns.MEASURED),
    Column("own_fid_verdict", "FID at its own cfg is", is_text=True),
    Column("own_fid_needed", "seeds that this FID needs", "", 0),
)


@dataclass(frozen=True, eq=False)
class Model:
    """One row of the experiment: its config, the row that it is compared with, what is there of it by guidance."""

    label: str
    against: str | None
    axes: Mapping[str, Any]
    config: RunConfig
    by_cfg: Mapping[float, pd.DataFrame]
    asked: float

    def own_cfg(self, seed: int | None, among: Collection[float]) -> float | None:
        """The guidance of the lowest mean FID on one sampling seed; None where a value was not evaluated on it."""
        found = self.fids(seed)
        there = {cfg: found[cfg] for cfg in among if cfg in found}
        return min(there, key=lambda cfg: there[cfg]) if among and len(there) == len(among) else None

    def fids(self, seed: int | None) -> dict[float, float]:
        """Mean FID on one sampling seed, by guidance."""
        fids = {cfg: kit.aggregate(_of_seeds(rows, [seed]), FID) for cfg, rows in self.by_cfg.items()}
        return {cfg: fid.mean for cfg, fid in sorted(fids.items()) if fid}

    @cached_property
    def seeds(self) -> set[int]:
        """Sampling seeds."""
        return {int(seed) for rows in self.by_cfg.values() for seed in rows["sample_seed"]}

    def measured(self, key: str, cfg: float | None, seeds: list[int]) -> kit.Measured | None:
        """A metric at one guidance, of some sampling seeds; likelihood hangs on none."""
        rows = self.by_cfg.get(cfg) if cfg is not None else None
        return None if rows is None else kit.aggregate(rows if key == NLL else _of_seeds(rows, seeds), key)


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """A table at one width and one at one size, and a figure, for each request of the experiment."""
    models = models_of(page.records, manifest)
    if models:
        for at_one_width in (True, False):
            if any(at_one_width == model.axes["of_preset"] for model in models):
                page.table(comparison(models, manifest, at_one_width))
        page.figure(f"inter_scale-{manifest.tag}", results_figure, models, manifest, page.figures)


def models_of(records: kit.Records, manifest: kit.Manifest) -> list[Model]:
    """The rows that something is measured of, with whatever evaluations differ from theirs in guidance alone."""
    found = []
    done = records.done
    for cell, rows in kit.cell_rows(records, manifest):
        if rows.empty:
            continue
        asked, like = _guidance(rows["settings"].iloc[0])
        by_cfg: dict[float, pd.DataFrame] = {}
        for settings, others in done.loc[done["run_id"].isin(cell.run_ids)].groupby("settings"):
            cfg, rest = _guidance(str(settings))
            if rest == like:
                by_cfg[cfg] = others
        config, base = records.configs[str(rows["run_id"].iloc[0])], kit.baseline_of(manifest, cell)
        found.append(Model(cell.label, base and base.label, cell.axes, config, by_cfg | {asked: rows}, asked))
    return found


def _guidance(settings: str) -> tuple[float, dict[str, Any]]:
    values = json.loads(settings)
    name = next(name for name in values if name.endswith("cfg_scale"))
    return float(values.pop(name)), values


def _of_seeds(rows: pd.DataFrame, seeds: Any) -> pd.DataFrame:
    return rows.loc[rows["sample_seed"].isin(seeds), :]


def sampling_seeds(models: list[Model]) -> tuple[int | None, list[int]]:
    """The sampling seed that the best guidance is chosen on, and those that are reported."""
    return kit.chosen_and_reported({seed for model in models for seed in model.seeds})


def cfgs_of_all(models: list[Model], seed: int | None) -> list[float]:
    """The values of guidance that each model with several was evaluated at: the choice is the same for all.

    None where there is but one such model: nothing would stand beside its own guidance.
    """
    found = [set(model.fids(seed)) for model in models] if seed is not None else []
    several = [values for values in found if len(values) > 1]
    shared = set.intersection(*several) if len(several) > 1 else set()
    return sorted(shared) if len(shared) > 1 else []


def scores(models: list[Model]) -> dict[str, dict[str, kit.Measured | None]]:
    """By row and score of `SCORES`: what is measured on the sampling seeds that are reported."""
    chosen_on, reported = sampling_seeds(models)
    among = cfgs_of_all(models, chosen_on)
    return {
        model.label: {
            "nll": model.measured(NLL, model.asked, reported),
            "fid": model.measured(FID, model.asked, reported),
            "own_fid": model.measured(FID, model.own_cfg(chosen_on, among), reported),
        }
        for model in models
    }


def comparison(models: list[Model], manifest: kit.Manifest, at_one_width: bool) -> kit.Table:
    """Likelihood, FID as asked and at its own guidance, each with a verdict against the row's baseline.

    Args:
        models: all of the request: guidance is chosen among what all of them have.
        manifest: the request.
        at_one_width: the rows of the preset's width, else those of other widths and what they are compared with.
    """
    chosen_on, _ = sampling_seeds(models)
    among = cfgs_of_all(models, chosen_on)
    found = scores(models)
    judged = [model for model in models if model.axes["of_preset"] == at_one_width]
    pairs = {
        (model.label, name): (ours, theirs)
        for model in judged
        for name, ours in found[model.label].items()
        if ours and model.against in found and (theirs := found[model.against][name])
    }
    counts = manifest.experiment.counts
    verdicts = kit.judge(pairs, counts={pair: counts for pair in pairs if pair[1] != "nll"})
    beside = {model.against for model in judged}
    shown = [model for model in models if model in judged or model.label in beside]
    rows = []
    for model in shown:
        row = {
            "label": model.label,
            "against": model.against if model in judged else None,
            "num_params": next(iter(model.by_cfg.values()))["num_params"].iloc[0].item(),
            "state_bytes": state_bytes(model.config.model, model.config.token_space),
            "own_cfg": model.own_cfg(chosen_on, among),
        }
        for name, value in found[model.label].items():
            verdict = verdicts.get((model.label, name))
            told = {f"{name}_verdict": verdict.told, f"{name}_needed": verdict.needed} if verdict else {}
            row |= {name: value, **told}
        rows.append(row)
    ids = [sorted({run for found in model.by_cfg.values() for run in found["run_id"]}) for model in shown]
    spreads = {name: kit.pooled([row[name] for row in rows if row[name]]) for name in SCORES}
    reading = [
        *_reading(among, chosen_on, counts),
        *(spread.told(SCORES[name]) for name, spread in spreads.items() if spread),
        *kit.left_out(verdicts.values()),
    ]
    which, end = ("width", "") if at_one_width else ("size", "-size")
    title = f"Between scales at one {which}, as asked and each at its own guidance: {manifest.title}"
    return kit.Table(f"{manifest.name}-own{end}", title, COLUMNS, rows, ids, reading=reading)


def _reading(among: list[float], chosen_on: int | None, counts: float) -> list[str]:
    told = [
        "Verdicts are on each row against the one that it is compared with, by t-tests paired by training seed, p "
        f"corrected by Holm's method over this table. A difference of FID counts from {counts:.1%} of the other's on. "
        "Inconclusive is not equal: the seeds do not tell which is better. Seeds needed: at which a difference of the "
        "size and scatter seen here is found in 80 % of trials, after correction."
    ]
    if not among:
        return [*told, "A model's own guidance wants evaluations at two values or more, on two sampling seeds or more."]
    return [
        *told,
        f"A model's own guidance is that of the lowest mean FID on sampling seed {chosen_on}, of the {len(among)} "
        f"values that all with several have ({', '.join(f'{value:g}' for value in among)}); all FIDs here are of other "
        "sampling seeds.",
    ]


def results_figure(models: list[Model], manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """Likelihood and FID of every model, a line each, by size.

    Raises:
        UserError: no evaluation to draw.
    """
    found = scores(models)
    there = {name: label for name, label in AXES.items() if any(row[name] for row in found.values())}
    title = f"inter_scale-{manifest.tag}"
    if not there:
        raise UserError(f"figure {title}: no finished run to draw")
    patterns = list(dict.fromkeys(str(model.axes["pattern"]) for model in models))
    sizes = list(dict.fromkeys(str(model.axes["size"]) for model in models))
    with kit.canvas(directory, title, 1.4 + 0.22 * len(patterns), ncols=len(there), sharey=True) as (figure, axes):
        for ax, (name, label) in zip(axes[0], there.items(), strict=True):
            for number, size in enumerate(sizes):
                drawn = [(m, value) for m in models if m.axes["size"] == size and (value := found[m.label][name])]
                ys = [patterns.index(m.axes["pattern"]) + 0.22 * (number - (len(sizes) - 1) / 2) for m, _ in drawn]
                means, bars = [v.mean for _, v in drawn], [v.sd or 0.0 for _, v in drawn]
                ax.errorbar(means, ys, xerr=bars, linestyle="none", marker="osD"[number % 3], markersize=4, label=size)
            ax.set(xlabel=label)
        axes[0, 0].set_yticks(range(len(patterns)), map(kit.figure_text, patterns))
        axes[0, 0].invert_yaxis()
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
        kit.despine(*axes[0])
    caption = (
        "Every model at each size that was asked for, NLL of held-out images; bars: standard deviation over training "
        "seeds, if several."
    )
    return kit.Figure(title, f"Between scales: {manifest.title}", caption)


ANALYSIS = kit.Analysis("inter_scale", "Partners of intra between scales", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
