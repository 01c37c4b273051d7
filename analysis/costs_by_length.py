"""What an image takes by its number of tokens: state, FLOPs, time and memory of partners of `intra`, and crossings.

Of the experiment `inter_scale`, and of every one whose rows have the axes `pattern` and `of_preset`.

python analysis/costs_by_length.py --results results
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
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

DENSE = "intra+global"
SIDES = PATCH_SIDES["512"]  # its first scales are whole schedules too: L from 30 to 2,240
NEVER = "none here"
LENGTHS = [SIDES[:count] for count in range(4, len(SIDES) + 1)]
PER_IMAGE = {"state": "state of an image (bytes)", "flops": "FLOPs an image"}
SMALLER = {"state": "a smaller state", "flops": "fewer FLOPs"}
MEASURED = {"ms": "ms", "peak": "MB"}  # of an image
LESS = {
    "ms": "Measured less time than {} at every L from there on, beyond what processes scatter by",
    "peak": "Measured less memory than {} at every L from there on",
}
BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "results"
OF_MIXERS = BENCHMARKS / "mixers.json"  # of `python -m benchmarks.mixers`
OF_MODELS = BENCHMARKS / "lengths.json"  # of `python -m benchmarks.lengths`
Models = Mapping[str, RunConfig]  # by pattern, at the preset's width


def draw(page: kit.Writer, manifest: kit.Manifest, table: kit.Table) -> None:
    """One or two tables and a figure for each request of the experiment."""
    models = models_of(page.records, manifest)
    if not models:
        return
    page.table(lengths(models, manifest))
    found: dict[str, Benchmark | None] = {}
    for path, named in ((OF_MODELS, "pattern"), (OF_MIXERS, "mixer")):
        try:
            found[named] = benchmark = read_benchmark(path, named)
        except UserError as error:
            found[named] = benchmark = None
            page.problems.append(one_line(error))
        if benchmark:
            page.table(measured_table(models, benchmark, manifest))
    shown = found["pattern"] or found["mixer"]
    page.figure(f"inter_scale-lengths-{manifest.tag}", lengths_figure, models, shown, manifest, page.figures)


def models_of(records: kit.Records, manifest: kit.Manifest) -> Models:
    """The configs of the rows at the preset's width that something is measured of."""
    return {
        str(cell.axes["pattern"]): records.configs[str(rows["run_id"].iloc[0])]
        for cell, rows in kit.cell_rows(records, manifest)
        if cell.axes["of_preset"] and not rows.empty
    }


def costs(config: RunConfig, sides: tuple[int, ...]) -> dict[str, int]:
    """What an image takes at another schedule, of the config alone: state in fp32, unguided FLOPs."""
    space = config.token_space
    other = TokenSpace(sides, space.vocab_size, space.code_channels, space.num_classes)
    return {"state": state_bytes(config.model, other), "flops": sample_flops(config.model, other, guided=False)}


def lengths(models: Models, manifest: kit.Manifest) -> kit.Table:
    """What an image takes from L = 30 to 2,240, and from which L on it is less than with `global` between scales."""
    dense = models.get(DENSE)
    ends = LENGTHS[0], LENGTHS[-1]
    rows = []
    for pattern, config in models.items():
        row: dict[str, Any] = {"label": pattern}
        for sides in ends:
            row |= {f"{key} {_tokens(sides)}": value for key, value in costs(config, sides).items()}
        for key in PER_IMAGE:
            row[f"{key} crossing"] = _crossing(config, dense, key)
        rows.append(row)
    shown = [columns.name("layers")]
    for key, heading in PER_IMAGE.items():
        shown += [Column(f"{key} {_tokens(s)}", f"{heading}, L = {_tokens(s):,}", columns.ANALYTIC, None) for s in ends]
        shown.append(Column(f"{key} crossing", f"less than {DENSE} from L =", columns.ANALYTIC, is_text=True))
    title = f"Between scales, memory and FLOPs by L: {manifest.title}"
    reading = [
        "Of the configs alone: these models with the first 4 to 10 scales of the 512 px schedule, one image, no "
        "guidance, state in fp32. FLOPs are no time: `python -m benchmarks.mixers` measures that.",
        *_told(rows, {k: f"Than {kit.code(DENSE)} have {what}" for k, what in SMALLER.items()}),
    ]
    return kit.Table(f"{manifest.name}-lengths", title, shown, rows, reading=reading)


def partners(models: Models) -> dict[str, str]:
    """By pattern, what stands beside `intra`."""
    return {pattern: pattern.removeprefix("intra+") for pattern in models if pattern.startswith("intra+")}


def _tokens(sides: tuple[int, ...]) -> int:
    return sum(side * side for side in sides)


def _crossing(config: RunConfig, dense: RunConfig | None, key: str) -> str | None:
    """The least L from which on a model takes less than the dense one at every L of the list."""
    if dense is None or config is dense:
        return None
    return _first_below({_tokens(s): (costs(config, s)[key], costs(dense, s)[key]) for s in LENGTHS})


def _first_below(values: Mapping[int, tuple[float, float]]) -> str:
    """By L, in order, two values: the least L from which on the first is less at every L."""
    more = [length for length, (ours, theirs) in values.items() if ours >= theirs]
    below = [length for length in values if not more or length > more[-1]]
    return f"{below[0]:,}" if below else NEVER


def _told(rows: list[dict[str, Any]], begun: Mapping[str, str]) -> list[str]:
    """The crossings of each cost in a sentence, by how it begins; the smallest L first."""
    told = []
    for key, begin in begun.items():
        by_length: dict[str, list[str]] = {}
        for row in rows:
            if row.get(f"{key} crossing"):
                by_length.setdefault(row[f"{key} crossing"], []).append(kit.code(row["label"]))
        never = by_length.pop(NEVER, [])
        first = sorted(by_length.items(), key=lambda found: int(found[0].replace(",", "")))
        parts = [f"from L = {length} on {', '.join(names)}" for length, names in first]
        parts += [f"at no L here, or not at the largest, {', '.join(never)}"] if never else []
        told += [f"{begin}: {'; '.join(parts)}."] if parts else []
    return told


# Time and memory, as a benchmark measured them ----------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """What drawing an image takes by L: milliseconds over processes, MB held at most, and from which L on less."""

    ms: Mapping[int, kit.Measured]
    difference: Mapping[int, tuple[float, float] | None]  # ms minus the dense one's: 95 % interval, None of one process
    peak: Mapping[int, float]
    crossings: Mapping[str, int | None]  # of `ms` and of `peak`


@dataclass(frozen=True)
class Benchmark:
    """Time and memory by L, on one machine: of whole models, or of one mixer by itself."""

    machine: str
    of: str  # their size, in words
    is_whole: bool  # models by pattern, else mixers by name
    repeats: int  # in each process
    taken: Mapping[str, Taken]

    @property
    def dense(self) -> str:
        """What the others are held against."""
        return DENSE if self.is_whole else DENSE.removeprefix("intra+")

    @property
    def command(self) -> str:
        """What has measured it."""
        return f"python -m benchmarks.{(OF_MODELS if self.is_whole else OF_MIXERS).stem}"

    def rows(self, models: Models) -> dict[str, str]:
        """By pattern of a model, what it is called here; only what was measured."""
        names = {p: p for p in models} if self.is_whole else partners(models)
        return {pattern: name for pattern, name in names.items() if name in self.taken}

    @property
    def lengths(self) -> list[int]:
        """Every L that was measured."""
        return sorted({length for taken in self.taken.values() for length in taken.ms})

    @property
    def mean(self) -> str:
        """What a time is, in words."""
        count = min(ms.n for taken in self.taken.values() for ms in taken.ms.values())
        return f"over {count} processes of the median of {self.repeats} repeats" if count > 1 else "of one process"


def read_benchmark(path: Path, named: str) -> Benchmark | None:
    """What `python -m benchmarks.mixers` has stored, or `benchmarks.lengths`; None where it has not run.

    Args:
        path: of the document.
        named: what its rows are told apart by: `mixer`, or `pattern` of whole models.

    Raises:
        UserError: a damaged file.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        machine, settings = found["machine"], found["settings"]
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        clock = ", processor time" if settings.get("processor_time") else ""
        where = f"{machine['cpu']}, {threads}, torch {machine['torch']}{clock}"
        taken = {row[named]: _taken(row) for row in found["lengths"]}
        is_whole = named != "mixer"
        sizes = ("depth", "width") if is_whole else ("mixer_width",)
        of = ", ".join(f"{size.removeprefix('mixer_')} {int(settings[size])}" for size in sizes)
        return Benchmark(where, of, is_whole, int(settings["repeats"]), taken)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        module = path.stem if path in (OF_MODELS, OF_MIXERS) else "mixers"
        raise UserError(f"{path}: {one_line(error)}; allowed: what `python -m benchmarks.{module}` writes") from error


def _taken(row: Mapping[str, Any]) -> Taken:
    ms = {int(at): kit.Measured.of(pd.Series(taken, dtype=float)) for at, taken in row["ms"].items()}
    return Taken(
        {at: taken for at, taken in ms.items() if taken},
        {
            int(at): interval and (float(interval[0]), float(interval[1]))
            for at, interval in row["ms_difference"].items()
        },
        {int(at): held / 1e6 for at, held in row["peak_bytes"].items()},
        {key: row[f"{key}_crossing"] for key in MEASURED},
    )


def measured_table(models: Models, benchmark: Benchmark, manifest: kit.Manifest) -> kit.Table:
    """Milliseconds and memory of each model, or partner of `intra`, by L, and where they cross."""
    dense, rows, at = benchmark.dense, [], benchmark.lengths
    for name in benchmark.rows(models).values():
        taken = benchmark.taken[name]
        row: dict[str, Any] = {"label": name}
        row |= {f"ms {n}": taken.ms.get(n) for n in at} | {f"peak {n}": taken.peak.get(n) for n in at}
        if name != dense and dense in benchmark.taken:
            row |= {f"{key} crossing": f"{n:,}" if n else NEVER for key, n in taken.crossings.items()}
        rows.append(row)
    what, told, end = (
        ("layers", "a whole model draws one image without guidance, decoding left out,", "-models")
        if benchmark.is_whole
        else (
            "mixer",
            "one mixer by itself goes through one image scale by scale with its state, as sampling does,",
            "",
        )
    )
    shown = [columns.name(what)]
    for key, heading in MEASURED.items():
        inner = {n: n in (at[0], at[-1]) for n in at}  # LaTeX has the ends
        shown += [
            Column(f"{key} {n}", f"{heading}, L = {n:,}", columns.MEASURED, 2, in_print=i) for n, i in inner.items()
        ]
        shown.append(Column(f"{key} crossing", f"less {heading} than {dense} from L =", columns.MEASURED, is_text=True))
    title = f"Between scales, time and memory{' of whole models' * benchmark.is_whole} by L: {manifest.title}"
    reading = [
        f"Measured by `{benchmark.command}`, not on these runs: {told} {benchmark.of}. {kit.prose(benchmark.machine)}. "
        "Another machine, width or batch has other times. The torch paths, on a processor: kernels of a GPU are not in "
        "these times.",
        f"Time: mean and standard deviation {benchmark.mean}, all in turn. It is less from the L on from "
        "which the 95 % interval of the difference of means (Welch's t, of one difference by itself) lies below 0 at "
        "every L that was measured. MB: the most that tensors hold at once, state and result included; weights, tables "
        "that are made once and what a kernel takes for itself are not in it. It is counted, the same every time.",
        *_told(rows, {k: what.format(kit.code(dense)) for k, what in LESS.items()}),
    ]
    return kit.Table(f"{manifest.name}-latency{end}", title, shown, rows, reading=reading)


def _looks(patterns: list[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each: as everywhere, or by number where two would look alike."""
    looks = {pattern: kit.mixer_look(pattern) for pattern in patterns}
    if len({(str(look["color"]), look["marker"]) for look in looks.values()}) == len(looks):
        return looks
    return {p: {"color": f"C{n}", "marker": "os^Dv*PX<>"[n % 10], "label": p} for n, p in enumerate(patterns)}


def lengths_figure(models: Models, benchmark: Benchmark | None, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """State and FLOPs of an image against L, one line a model of the preset's width; beside them what was measured."""
    name, looks = f"inter_scale-lengths-{manifest.tag}", _looks(list(models))
    grid = {"nrows": 2, "ncols": 3} if benchmark else {"ncols": 2}
    with kit.canvas(directory, name, 5.2 if benchmark else 3.6, **grid) as (figure, axes):
        drawn = [axes[0, 0], axes[1, 0] if benchmark else axes[0, 1]]
        for ax, (key, label) in zip(drawn, PER_IMAGE.items(), strict=True):
            for pattern, config in models.items():
                values = [costs(config, sides)[key] for sides in LENGTHS]
                if any(values):
                    ax.plot(list(map(_tokens, LENGTHS)), values, markersize=4, **looks[pattern])
            ax.set(xscale="log", yscale="log", xlabel="tokens of an image (L)", ylabel=label)
        key = drawn[1].get_legend_handles_labels()
        if benchmark:
            _measured_panels((axes[0, 1], axes[1, 1], axes[1, 2]), benchmark, models, looks)
            axes[0, 2].set_axis_off()
            axes[0, 2].legend(*key, loc="center", fontsize="small")
        else:
            figure.legend(*key, loc="outside lower center", ncols=4, fontsize="small")
        kit.despine(*axes.flat)
    caption = (
        "What an image takes as it has more scales, from the configs alone: state in fp32 (none: not drawn) and FLOPs "
        "of sampling without guidance, at the first 4 to 10 scales of the 512 px schedule."
    )
    if benchmark:
        told = "drawing it with the whole model" if benchmark.is_whole else "the partner of intra by itself"
        caption += (
            f" Measured: {told}, {benchmark.of}, {benchmark.machine}; memory of tensors, the most at once, weights "
            f"aside; mean time {benchmark.mean}, bars: standard deviation; that time over the one of "
            f"{benchmark.dense}, bars: 95 % interval of the difference of means."
        )
    return kit.Figure(name, f"Between scales, memory, FLOPs and time by L: {manifest.title}", caption)


def _measured_panels(
    axes: tuple[Any, Any, Any], benchmark: Benchmark, models: Models, looks: Mapping[str, Any]
) -> None:
    """Memory, time, and time over the dense one's, against L."""
    dense = benchmark.taken.get(benchmark.dense)
    small = kit.ERROR_BARS | {"capsize": 2, "markersize": 4}
    for pattern, name in benchmark.rows(models).items():
        taken, look = benchmark.taken[name], small | looks[pattern]
        axes[0].plot(list(taken.peak), list(taken.peak.values()), markersize=4, **looks[pattern])
        kit.points(axes[1], list(taken.ms), list(taken.ms.values()), **look)
        if dense and taken is not dense:
            pairs = {n: (ms.mean, dense.ms[n].mean, taken.difference[n]) for n, ms in taken.ms.items() if n in dense.ms}
            half = [(between[1] - between[0]) / 2 / theirs if between else 0 for _, theirs, between in pairs.values()]
            axes[2].errorbar(list(pairs), [ours / theirs for ours, theirs, _ in pairs.values()], yerr=half, **look)
    axes[2].axhline(1, color="0.4", linewidth=1)
    of = "" if benchmark.is_whole else " of the partner"
    labels = (f"MB held at most{of}", f"ms an image{of}", f"time{of} / that of {benchmark.dense}")
    for ax, label, scale in zip(axes, labels, ("log", "log", "linear"), strict=True):
        ax.set(xscale="log", yscale=scale, xlabel="tokens of an image (L)", ylabel=label)


ANALYSIS = kit.Analysis("costs_by_length", "State, FLOPs, time and memory of an image by its tokens", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
