"""Between scales: every partner of `intra` against M-VAR's Mamba, each at its own guidance; and what each costs by L.

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

from mvar import (
    PATCH_SIDES,
    Column,
    RunConfig,
    TokenSpace,
    UserError,
    columns,
    one_line,
    sample_flops,
    state_bytes,
)
from mvar import analysis as kit

FID, NLL = "eval/fid", "eval/nll_bits_per_token"
MVAR, DENSE = "intra+mamba", "intra+global"
SIDES = PATCH_SIDES["512"]  # its first scales are whole schedules too: L from 30 to 2,240
NEVER = "none here"
LENGTHS = [SIDES[:count] for count in range(4, len(SIDES) + 1)]
PER_IMAGE = {"state": "state of an image (bytes)", "flops": "FLOPs an image"}
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "results" / "mixers.json"  # of `python -m benchmarks.mixers`


@dataclass(frozen=True)
class Model:
    """One row of the experiment: its config and what is there of it, by guidance."""

    label: str
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

    def costs(self, sides: tuple[int, ...]) -> dict[str, int]:
        """What an image takes at another schedule, of the config alone: state in fp32, unguided FLOPs."""
        space = self.config.token_space
        other = TokenSpace(sides, space.vocab_size, space.code_channels, space.num_classes)
        model = self.config.model
        return {"state": state_bytes(model, other), "flops": sample_flops(model, other, guided=False)}


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """Two tables and two figures for each request of the experiment."""
    models = models_of(page.records, manifest)
    if not models:
        return
    page.table(comparison(models, manifest))
    page.figure(f"inter_scale-{manifest.tag}", results_figure, models, manifest, page.figures)
    page.table(lengths(models, manifest))
    try:
        latency = read_latency()
    except UserError as error:
        latency = None
        page.problems.append(one_line(error))
    if latency:
        page.table(latency_table(models, latency, manifest))
    page.figure(f"inter_scale-lengths-{manifest.tag}", lengths_figure, models, latency, manifest, page.figures)


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
        config = records.configs[str(rows["run_id"].iloc[0])]
        found.append(Model(cell.label, cell.axes, config, by_cfg | {asked: rows}, asked))
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
    """The values of guidance that each model with several was evaluated at: the choice is the same for all."""
    found = [set(model.fids(seed)) for model in models] if seed is not None else []
    shared = set.intersection(*several) if (several := [values for values in found if len(values) > 1]) else set()
    return sorted(shared) if len(shared) > 1 else []


def comparison(models: list[Model], manifest: kit.Manifest) -> kit.Table:
    """Every model: likelihood, FID as asked and at its own guidance, each with a verdict against M-VAR."""
    chosen_on, reported = sampling_seeds(models)
    among = cfgs_of_all(models, chosen_on)
    rows: list[dict[str, Any]] = []
    pairs: dict[tuple[str, str], tuple[kit.Measured, kit.Measured]] = {}
    reference = next((model for model in of_preset(models) if model.axes["pattern"] == MVAR), None)
    for model in models:
        cfg = model.own_cfg(chosen_on, among)
        row: dict[str, Any] = {"label": model.label, "own_cfg": cfg}
        scores = {"nll": (NLL, model.asked), "fid": (FID, model.asked), "own_fid": (FID, cfg)}
        for name, (key, at) in scores.items():
            row[name] = model.measured(key, at, reported)
            theirs = reference and reference.measured(
                key, reference.own_cfg(chosen_on, among) if name == "own_fid" else reference.asked, reported
            )
            if model is not reference and row[name] and theirs:
                pairs[model.label, name] = row[name], theirs
        space = model.config.token_space
        row["state_bytes"] = state_bytes(model.config.model, space)
        row["num_params"] = next(iter(model.by_cfg.values()))["num_params"].iloc[0].item()
        rows.append(row)
    counts = manifest.experiment.counts
    verdicts = kit.judge(pairs, counts={pair: counts for pair in pairs if pair[1] != "nll"})
    for (label, name), verdict in verdicts.items():
        row = next(row for row in rows if row["label"] == label)
        row |= {f"{name}_verdict": verdict.told, f"{name}_needed": verdict.needed}
    ids = [sorted({run for found in model.by_cfg.values() for run in found["run_id"]}) for model in models]
    shown = [
        columns.name("layers, size"),
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
    ]
    title = f"Between scales, each against {MVAR}: {manifest.title}"
    reading = [*_reading(among, chosen_on, counts), *kit.left_out(verdicts.values())]
    return kit.Table(f"{manifest.name}-own", title, shown, rows, ids, reading=reading)


def _reading(among: list[float], chosen_on: int | None, counts: float) -> list[str]:
    told = [
        f"Verdicts are against {MVAR} at the preset's width, by t-tests paired by training seed, p corrected by Holm's "
        f"method over this table. A difference of FID counts from {counts:.1%} of {MVAR}'s on. Inconclusive is not "
        "equal: the seeds do not tell which is better. Seeds needed: at which a difference of the size and scatter "
        "seen here is found in 80 % of trials, after correction."
    ]
    if not among:
        return [*told, "A model's own guidance wants evaluations at two values or more, on two sampling seeds or more."]
    return [
        *told,
        f"A model's own guidance is that of the lowest mean FID on sampling seed {chosen_on}, of the {len(among)} "
        f"values that all with several have ({', '.join(f'{value:g}' for value in among)}); all FIDs here are of other "
        "sampling seeds.",
    ]


def lengths(models: list[Model], manifest: kit.Manifest) -> kit.Table:
    """What an image takes from L = 30 to 2,240, and from which L on it is less than with `global` between scales."""
    dense = next((model for model in of_preset(models) if model.axes["pattern"] == DENSE), None)
    ends = LENGTHS[0], LENGTHS[-1]
    rows = []
    for model in of_preset(models):
        row: dict[str, Any] = {"label": model.axes["pattern"]}
        for sides in ends:
            row |= {f"{key} {_tokens(sides)}": value for key, value in model.costs(sides).items()}
        for key in PER_IMAGE:
            row[f"{key} crossing"] = _crossing(model, dense, key)
        rows.append(row)
    shown = [columns.name("layers")]
    for key, heading in PER_IMAGE.items():
        shown += [Column(f"{key} {_tokens(s)}", f"{heading}, L = {_tokens(s):,}", columns.ANALYTIC, None) for s in ends]
        shown.append(Column(f"{key} crossing", f"less than {DENSE} from L =", columns.ANALYTIC, is_text=True))
    title = f"Between scales, memory and FLOPs by L: {manifest.title}"
    reading = [
        "Of the configs alone: these models with the first 4 to 10 scales of the 512 px schedule, one image, no "
        "guidance, state in fp32. FLOPs are no time: `python -m benchmarks.mixers` measures that.",
        *filter(None, (_told(rows, "state", "a smaller state"), _told(rows, "flops", "fewer FLOPs"))),
    ]
    return kit.Table(f"{manifest.name}-lengths", title, shown, rows, reading=reading)


def of_preset(models: list[Model]) -> list[Model]:
    """Those of the preset's width, one a pattern."""
    return [model for model in models if model.axes["of_preset"]]


def partners(models: list[Model]) -> dict[str, str]:
    """By pattern, what stands beside `intra`."""
    patterns = [str(model.axes["pattern"]) for model in of_preset(models)]
    return {pattern: pattern.removeprefix("intra+") for pattern in patterns if pattern.startswith("intra+")}


def _tokens(sides: tuple[int, ...]) -> int:
    return sum(side * side for side in sides)


def _crossing(model: Model, dense: Model | None, key: str) -> str | None:
    """The least L from which on the model takes less than the dense one at every L of the list."""
    if dense is None or model is dense:
        return None
    return _first_below({_tokens(s): (model.costs(s)[key], dense.costs(s)[key]) for s in LENGTHS})


def _first_below(values: Mapping[int, tuple[float, float]]) -> str:
    """By L, in order, two values: the least L from which on the first is less at every L."""
    more = [length for length, (ours, theirs) in values.items() if ours >= theirs]
    below = [length for length in values if not more or length > more[-1]]
    return f"{below[0]:,}" if below else NEVER


def _told(rows: list[dict[str, Any]], key: str, what: str) -> str:
    """The crossings of one cost in a sentence."""
    by_length: dict[str, list[str]] = {}
    for row in rows:
        if row[f"{key} crossing"]:
            by_length.setdefault(row[f"{key} crossing"], []).append(kit.code(row["label"]))
    never = by_length.pop(NEVER, [])
    parts = [f"from L = {length} on {', '.join(names)}" for length, names in by_length.items()]
    parts += [f"at no L here, or not at the largest, {', '.join(never)}"] if never else []
    return f"Than {kit.code(DENSE)} have {what}: {'; '.join(parts)}." if parts else ""


# Latency, as a benchmark measured it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """Milliseconds in which one mixer by itself goes through an image, by L, on one machine."""

    machine: str
    width: int
    ms: Mapping[str, Mapping[int, float]]  # by mixer

    @property
    def lengths(self) -> list[int]:
        """Every L that was measured."""
        return sorted({length for taken in self.ms.values() for length in taken})


def read_latency(path: Path = BENCHMARK) -> Latency | None:
    """What `python -m benchmarks.mixers` has stored; None where it has not run.

    Raises:
        UserError: a damaged file.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        machine = found["machine"]
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        clock = ", processor time" if found["settings"].get("processor_time") else ""
        where = f"{machine['cpu']}, {threads}, torch {machine['torch']}{clock}"
        ms = {row["mixer"]: {int(at): float(taken) for at, taken in row["ms"].items()} for row in found["lengths"]}
        return Latency(where, int(found["settings"]["mixer_width"]), ms)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {one_line(error)}; allowed: what `python -m benchmarks.mixers` writes") from error


def latency_table(models: list[Model], latency: Latency, manifest: kit.Manifest) -> kit.Table:
    """Milliseconds of each partner of `intra` by itself at the least and the largest L, and where it meets `global`."""
    dense, rows = latency.ms.get("global", {}), []
    ends = latency.lengths[0], latency.lengths[-1]
    for mixer in [name for name in partners(models).values() if name in latency.ms]:
        taken = latency.ms[mixer]
        row: dict[str, Any] = {"label": mixer, **{f"ms {length}": taken.get(length) for length in ends}}
        both = [length for length in latency.lengths if length in taken and length in dense]
        if mixer != "global" and both:
            row["ms crossing"] = _first_below({length: (taken[length], dense[length]) for length in both})
        rows.append(row)
    shown = [columns.name("mixer"), *(Column(f"ms {n}", f"ms, L = {n:,}", columns.MEASURED, 2) for n in ends)]
    shown.append(Column("ms crossing", "less than global from L =", columns.MEASURED, is_text=True))
    title = f"Between scales, latency by L: {manifest.title}"
    reading = [
        f"Measured by `python -m benchmarks.mixers`, not on these runs: one mixer by itself, width {latency.width}, "
        f"goes through one image scale by scale with its state, as sampling does. {kit.prose(latency.machine)}. "
        "Another machine, width or batch has other times.",
        "The torch paths, on a processor: kernels of a GPU are not in these times.",
    ]
    return kit.Table(f"{manifest.name}-latency", title, shown, rows, reading=reading)


def _looks(patterns: list[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each: as everywhere, or by number where two would look alike."""
    looks = {pattern: kit.mixer_look(pattern) for pattern in patterns}
    if len({(str(look["color"]), look["marker"]) for look in looks.values()}) == len(looks):
        return looks
    return {p: {"color": f"C{n}", "marker": "os^Dv*PX<>"[n % 10], "label": p} for n, p in enumerate(patterns)}


def lengths_figure(models: list[Model], latency: Latency | None, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """State and FLOPs of an image against L, one line a model of the preset's width; latency of mixers where known."""
    shown, name = of_preset(models), f"inter_scale-lengths-{manifest.tag}"
    looks = _looks([model.axes["pattern"] for model in shown])
    with kit.canvas(directory, name, 3.6, ncols=3 if latency else 2) as (figure, axes):
        for ax, (key, label) in zip(axes[0, :2], PER_IMAGE.items(), strict=True):
            for model in shown:
                values = [model.costs(sides)[key] for sides in LENGTHS]
                if any(values):
                    ax.plot(list(map(_tokens, LENGTHS)), values, markersize=4, **looks[model.axes["pattern"]])
            ax.set(xscale="log", yscale="log", xlabel="tokens of an image (L)", ylabel=label)
        if latency:
            for pattern, mixer in partners(models).items():
                taken = latency.ms.get(mixer, {})
                axes[0, 2].plot(list(taken), list(taken.values()), markersize=4, **looks[pattern])
            axes[0, 2].set(xscale="log", yscale="log", xlabel="tokens of an image (L)", ylabel="ms of the partner")
        figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
        kit.despine(*axes[0])
    caption = (
        "What an image takes as it has more scales, from the configs alone: state in fp32 (none: not drawn) and FLOPs "
        "of sampling without guidance, at the first 4 to 10 scales of the 512 px schedule."
    )
    if latency:
        caption += f" Right, measured: the partner of intra by itself, width {latency.width}, {latency.machine}."
    return kit.Figure(name, f"Between scales, memory and FLOPs by L: {manifest.title}", caption)


def results_figure(models: list[Model], manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """Likelihood and FID of every model, a line each, by size.

    Raises:
        UserError: no evaluation to draw.
    """
    chosen_on, reported = sampling_seeds(models)
    among = cfgs_of_all(models, chosen_on)
    scores = {
        "held-out NLL ↓ (bits per token)": lambda m: m.measured(NLL, m.asked, reported),
        "FID ↓ as asked": lambda m: m.measured(FID, m.asked, reported),
        "FID ↓ at its own guidance": lambda m: m.measured(FID, m.own_cfg(chosen_on, among), reported),
    }
    there = {label: of for label, of in scores.items() if any(map(of, models))}
    name = f"inter_scale-{manifest.tag}"
    if not there:
        raise UserError(f"figure {name}: no finished run to draw")
    patterns = list(dict.fromkeys(str(model.axes["pattern"]) for model in models))
    sizes = list(dict.fromkeys(str(model.axes["size"]) for model in models))
    with kit.canvas(directory, name, 1.4 + 0.22 * len(patterns), ncols=len(there), sharey=True) as (figure, axes):
        for ax, (label, of) in zip(axes[0], there.items(), strict=True):
            for number, size in enumerate(sizes):
                found = [(m, value) for m in models if m.axes["size"] == size and (value := of(m))]
                ys = [patterns.index(m.axes["pattern"]) + 0.22 * (number - (len(sizes) - 1) / 2) for m, _ in found]
                means, bars = [v.mean for _, v in found], [v.sd or 0.0 for _, v in found]
                ax.errorbar(means, ys, xerr=bars, linestyle="none", marker="osD"[number % 3], label=size)
            ax.set(xlabel=label)
        axes[0, 0].set_yticks(range(len(patterns)), map(kit.figure_text, patterns))
        axes[0, 0].invert_yaxis()
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
        kit.despine(*axes[0])
    caption = "Every model at each size that was asked for; bars: standard deviation over training seeds, if several."
    return kit.Figure(name, f"Between scales: {manifest.title}", caption)


ANALYSIS = kit.Analysis("inter_scale", "Partners of intra between scales, and their costs by L", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
