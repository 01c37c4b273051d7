"""What an image takes by its number of tokens: state, FLOPs and latency of every partner of `intra`, where they cross.

Of the experiment `inter_scale`, and of every one whose rows have the axes `pattern` and `of_preset`.

python analysis/costs_by_length.py --results results
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    found: dict[str, Latency | None] = {}
    for path, named in ((OF_MODELS, "pattern"), (OF_MIXERS, "mixer")):
        try:
            found[named] = latency = read_latency(path, named)
        except UserError as error:
            found[named] = latency = None
            page.problems.append(one_line(error))
        if latency:
            page.table(latency_table(models, latency, manifest))
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
        *filter(None, (_told(rows, "state", "a smaller state"), _told(rows, "flops", "fewer FLOPs"))),
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
    """Milliseconds of an image by L, on one machine: of whole models, or of one mixer by itself."""

    machine: str
    of: str  # their size, in words
    is_whole: bool  # models by pattern, else mixers by name
    ms: Mapping[str, Mapping[int, float]]

    @property
    def dense(self) -> str:
        """What the others are held against."""
        return DENSE if self.is_whole else DENSE.removeprefix("intra+")

    @property
    def command(self) -> str:
        """What has measured it."""
        return f"python -m benchmarks.{(OF_MODELS if self.is_whole else OF_MIXERS).stem}"

    def rows(self, models: Models) -> dict[str, str]:
        """By pattern of a model, what it is called here."""
        return {p: p for p in models} if self.is_whole else partners(models)

    @property
    def lengths(self) -> list[int]:
        """Every L that was measured."""
        return sorted({length for taken in self.ms.values() for length in taken})


def read_latency(path: Path, named: str) -> Latency | None:
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
        machine = found["machine"]
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        clock = ", processor time" if found["settings"].get("processor_time") else ""
        where = f"{machine['cpu']}, {threads}, torch {machine['torch']}{clock}"
        ms = {row[named]: {int(at): float(taken) for at, taken in row["ms"].items()} for row in found["lengths"]}
        settings = found["settings"]
        if named == "mixer":
            return Latency(where, f"width {int(settings['mixer_width'])}", False, ms)
        return Latency(where, f"depth {int(settings['depth'])}, width {int(settings['width'])}", True, ms)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        module = path.stem if path in (OF_MODELS, OF_MIXERS) else "mixers"
        raise UserError(f"{path}: {one_line(error)}; allowed: what `python -m benchmarks.{module}` writes") from error


def latency_table(models: Models, latency: Latency, manifest: kit.Manifest) -> kit.Table:
    """Milliseconds of each model, or partner of `intra`, at the least and the largest L, and where it crosses."""
    dense, rows = latency.ms.get(latency.dense, {}), []
    ends = latency.lengths[0], latency.lengths[-1]
    for name in [name for name in latency.rows(models).values() if name in latency.ms]:
        taken = latency.ms[name]
        row: dict[str, Any] = {"label": name, **{f"ms {length}": taken.get(length) for length in ends}}
        both = [length for length in latency.lengths if length in taken and length in dense]
        if name != latency.dense and both:
            row["ms crossing"] = _first_below({length: (taken[length], dense[length]) for length in both})
        rows.append(row)
    what, told, end = (
        ("layers", "a whole model draws one image without guidance, decoding left out,", "-models")
        if latency.is_whole
        else (
            "mixer",
            "one mixer by itself goes through one image scale by scale with its state, as sampling does,",
            "",
        )
    )
    shown = [columns.name(what), *(Column(f"ms {n}", f"ms, L = {n:,}", columns.MEASURED, 2) for n in ends)]
    shown.append(Column("ms crossing", f"less than {latency.dense} from L =", columns.MEASURED, is_text=True))
    title = f"Between scales, latency{' of whole models' * latency.is_whole} by L: {manifest.title}"
    reading = [
        f"Measured by `{latency.command}`, not on these runs: {told} {latency.of}. {kit.prose(latency.machine)}. "
        "Another machine, width or batch has other times.",
        "The torch paths, on a processor: kernels of a GPU are not in these times.",
    ]
    return kit.Table(f"{manifest.name}-latency{end}", title, shown, rows, reading=reading)


def _looks(patterns: list[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each: as everywhere, or by number where two would look alike."""
    looks = {pattern: kit.mixer_look(pattern) for pattern in patterns}
    if len({(str(look["color"]), look["marker"]) for look in looks.values()}) == len(looks):
        return looks
    return {p: {"color": f"C{n}", "marker": "os^Dv*PX<>"[n % 10], "label": p} for n, p in enumerate(patterns)}


def lengths_figure(models: Models, latency: Latency | None, manifest: kit.Manifest, directory: Path) -> kit.Figure:
    """State and FLOPs of an image against L, one line a model of the preset's width; latency of mixers where known."""
    name, looks = f"inter_scale-lengths-{manifest.tag}", _looks(list(models))
    with kit.canvas(directory, name, 3.6, ncols=3 if latency else 2) as (figure, axes):
        for ax, (key, label) in zip(axes[0, :2], PER_IMAGE.items(), strict=True):
            for pattern, config in models.items():
                values = [costs(config, sides)[key] for sides in LENGTHS]
                if any(values):
                    ax.plot(list(map(_tokens, LENGTHS)), values, markersize=4, **looks[pattern])
            ax.set(xscale="log", yscale="log", xlabel="tokens of an image (L)", ylabel=label)
        if latency:
            for pattern, name_there in latency.rows(models).items():
                taken = latency.ms.get(name_there, {})
                axes[0, 2].plot(list(taken), list(taken.values()), markersize=4, **looks[pattern])
            axes[0, 2].set(
                xscale="log",
                yscale="log",
                xlabel="tokens of an image (L)",
                ylabel="ms an image" if latency.is_whole else "ms of the partner",
            )
        figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
        kit.despine(*axes[0])
    caption = (
        "What an image takes as it has more scales, from the configs alone: state in fp32 (none: not drawn) and FLOPs "
        "of sampling without guidance, at the first 4 to 10 scales of the 512 px schedule."
    )
    if latency:
        told = "drawing it with the whole model" if latency.is_whole else "the partner of intra by itself"
        caption += f" Right, measured: {told}, {latency.of}, {latency.machine}."
    return kit.Figure(name, f"Between scales, memory and FLOPs by L: {manifest.title}", caption)


ANALYSIS = kit.Analysis("costs_by_length", "State, FLOPs and latency of an image by its tokens", draw, of="sweep")


if __name__ == "__main__":
    sys.exit(kit.main(ANALYSIS))
