"""The first screen of the report: what was run, the main finding, the floors, and what to beware of."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mvar.analysis.background import other_references
from mvar.analysis.compare import Difference, Measured, heldout_images, new_images_interval
from mvar.analysis.document import Block, Bullets, Text
from mvar.analysis.manifests import Manifest
from mvar.analysis.records import Records
from mvar.analysis.render import Table
from mvar.escaping import code, markdown

FEW_IMAGES = 10_000  # below it FID's bias is a good part of it; the papers use 50,000
MAX_SCORES = 3
CHANCE = 0.995  # of log2 V: a held-out NLL from there on is that of guessing
Tables = Sequence[tuple[Manifest, Table, Table | None]]  # a sweep, its table, its differences from the baseline

PRINTED = (
    "Printed values are the paper's, on ImageNet, in columns of their own: they show its trend and are no target. A "
    "dash is what is not measured or not printed; nothing is filled in."
)


def summary(
    records: Records,
    tables: Tables,
    used: pd.DataFrame,
    headlines: Sequence[str],
    floors: Sequence[dict[str, Any]],
    num_problems: int,
) -> list[Block]:
    """Blocks of the first section.

    Args:
        records: all that was read.
        tables: the sweeps' tables.
        used: of `used_rows`.
        headlines: sentences that analyses have for this screen.
        floors: of `background.floor_rows`.
        num_problems: lines under "Problems".
    """
    blocks: list[Block] = [
        Bullets(_run_lines(records, tables, used), "What was run"),
        Bullets([*_findings(tables), *headlines[:MAX_SCORES]], "Main finding"),
    ]
    if floors:
        blocks.append(Bullets(_floor_lines(floors, other_references(used)), "Floors"))
    warnings = [*_warnings(records, tables, used, num_problems), *_blind(floors)]
    if warnings:
        blocks.append(Bullets(warnings, "Warnings"))
    return [*blocks, Text(PRINTED)]


def used_rows(records: Records, tables: Tables) -> pd.DataFrame:
    """The finished evaluations that the sweeps' tables are made of, each once: what this screen counts."""
    done = records.done
    run_ids = {run_id for _, table, _ in tables for row in table.run_ids for run_id in row}
    evaluations = {one for manifest, _, _ in tables for cell in manifest.cells for one in cell.evaluation_ids}
    return done.loc[done["run_id"].isin(list(run_ids)) & done["evaluation_id"].isin(list(evaluations))]


def _run_lines(records: Records, tables: Tables, used: pd.DataFrame) -> list[str]:
    manifests = [manifest for manifest, _, _ in tables]
    asked = {run_id for manifest in manifests for cell in manifest.cells for run_id in cell.run_ids}
    missing = {missing.run_id for missing in records.missing}
    here = len(asked - missing)
    others = len(set(records.done["run_id"]) - set(used["run_id"]))
    lines = [
        f"{_count(len(set(used['run_id'])), 'finished run')}; {here} of the {len(asked)} that sweeps asked for are here"
        + (f", {len(missing)} are [missing](#missing)." if missing else ".")
        + (f" In no sweep's table: {_count(others, 'more finished run')}." if others else "")
    ]
    groups: dict[str, list[str]] = {}
    for manifest in (m for m in manifests if any(cell.run_ids for cell in m.cells)):
        groups.setdefault(markdown(manifest.title), []).append(markdown(f"{manifest.sweep} ({manifest.artefact})"))
    lines += [f"{title}: {', '.join(sweeps)}." for title, sweeps in groups.items()]
    if len(used):
        seeds, sets = len(set(used["seed"])), max(len(set(s)) for _, s in used.groupby("run_id")["sample_seed"])
        images = ", ".join(f"{n:,}" for n in sorted(used["num_images"].astype(int).unique()))
        lines.append(
            f"{_count(seeds, 'training seed')}, {_count(sets, 'set')} of {images} images a run; data: "
            f"{', '.join(map(markdown, sorted(used['data'].unique())))}."
        )
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _findings(tables: Tables) -> list[str]:
    lines, told = [], False
    for manifest, table, differences in tables:
        title, experiment = markdown(manifest.title), manifest.experiment
        if experiment.compares == "trend":
            trend = [line for line in table.reading if line.startswith("FID: ")]
            lines += [f"{title}, {experiment.along}: {line}" for line in trend]
        if not experiment.pair:
            continue
        told = told or any("n" in row for row in table.rows)
        rows = {row["label"]: row for row in table.rows}
        base, other = (rows.get(label, {}) for label in experiment.pair)
        if not (isinstance(base.get("fid"), Measured) and isinstance(other.get("fid"), Measured)):
            continue
        found = next((row for row in differences.rows if row["label"] == other["label"]), {}) if differences else {}
        lines += [f"{title}: {line}." for line in _pair(base, other, found)]
        lines += [f"{title}: {line}" for line in table.reading if line.startswith("Of ")]
    unmeasured = [m for m, _, _ in tables if m.experiment.pair and m.experiment.of_paper]
    if unmeasured and not told:
        first = unmeasured[0]
        lines.append(f"{first.artefact} is not measured yet: `mvar run {first.sweep}` makes its runs.")
    return lines


def _pair(base: dict[str, Any], other: dict[str, Any], found: dict[str, Any]) -> list[str]:
    names = [markdown(row["label"]) for row in (other, base)]
    shown = [f"{name} ({code(str(row['pattern']))})" for name, row in zip(names, (other, base), strict=True)]
    printed = ""
    if base.get("paper_fid") is not None and other.get("paper_fid") is not None:
        printed = f"; the paper prints {other['paper_fid']:.2f} and {base['paper_fid']:.2f} on ImageNet"
    told = [
        f"FID {other['fid'].text(2)} for {shown[0]}, {base['fid'].text(2)} for {shown[1]}"
        f"{_verdict(found, 'fid', 2)}{printed}"
    ]
    cost = ""
    if base.get("train_flops") and other.get("train_flops"):
        cost = f"; {names[0]} spends {other['train_flops'] / base['train_flops']:.2f} times {names[1]}'s training FLOPs"
    if isinstance(base.get("nll"), Measured) and isinstance(other.get("nll"), Measured):
        nll = f"held-out NLL {other['nll'].text(2)} and {base['nll'].text(2)} bits per token"
        told.append(f"{nll}{_verdict(found, 'nll', 3)}{cost}")
    return told


def _verdict(row: dict[str, Any], key: str, decimals: int) -> str:
    """The verdict of a row of the table of differences on one metric; empty where nothing is paired."""
    found, verdict = row.get(key), row.get(f"{key}_verdict")
    if not isinstance(found, Difference) or verdict is None:
        return ""
    seeds = f" over {found.n} seeds" if found.n > 1 else ""
    return f" (difference {found.text(decimals)}{seeds}: {verdict})"


def _floor_lines(floors: Sequence[dict[str, Any]], others: Sequence[str]) -> list[str]:
    names = {
        "floor/fid_reconstruction_heldout": "reconstructed held-out images (rFID)",
        "floor/fid_reconstruction_train": "reconstructed training images",
        "floor/fid_real": "real training images",
    }
    groups: dict[str, list[str]] = {}
    for row in floors:
        if row["key"] in names:
            images = f" ({row['images']})" if row["images"] else ""
            groups.setdefault(row["data"], []).append(f"{names[row['key']]} {row['value']:.2f}{images}")
    told = f" No floors of the FIDs here against {' or '.join(others)}." if others else ""
    return [f"FID on {about}, against held-out images: {', '.join(values)}.{told}" for about, values in groups.items()]


def _warnings(records: Records, tables: Tables, used: pd.DataFrame, num_problems: int) -> list[str]:
    lines = []
    single = [
        markdown(f"{m.sweep} ({m.title})") for m, table, _ in tables if any(row.get("n") == 1 for row in table.rows)
    ]
    if single:
        lines.append(f"Rows of one seed, whose differences may be chance: {'; '.join(single)}. `--seeds 3` adds seeds.")
    images = sorted(used["num_images"].astype(int).unique()) if len(used) else []
    if images and images[0] < FEW_IMAGES:
        lines.append(
            f"FID of {images[0]:,} images is biased upwards; it compares with no FID of another number of images, of "
            "another reference, or of another extractor."
        )
    if "smoke" in {manifest.preset for manifest, _, _ in tables}:
        lines.append(
            "The smoke preset trains for seconds: it shows that everything runs, and no number means anything."
        )
    lines += _many_copies(tables, used)
    lines += _at_chance(used, records)
    if num_problems:
        lines.append(f"{_count(num_problems, 'problem')} with what was read or drawn: [Problems](#problems).")
    return lines


def _many_copies(tables: Tables, used: pd.DataFrame) -> list[str]:
    """Rows with more near-copies than 95 % of sets of so many new images would have."""
    heldout: Any = used["eval/copy_rate_heldout"].mean() if "eval/copy_rate_heldout" in used else None
    if heldout is None or not heldout >= 0:
        return []
    fewest: Any = used["num_images"].min()
    if not (real := heldout_images(used)):
        return []
    low, high = new_images_interval(float(heldout), real, int(fewest))
    copies = {
        row["label"]: row["copy_rate"]
        for _, table, _ in tables
        for row in table.rows
        if isinstance(row.get("copy_rate"), Measured) and row["copy_rate"].mean > high
    }
    told = ", ".join(f"{markdown(label)} {value.mean:.1%}" for label, value in copies.items())
    new = f"{low:.1%} to {high:.1%}, 95 %"
    return [f"More near-copies of training images than new images would have ({new}): {told}."] if copies else []


def _blind(floors: Sequence[dict[str, Any]]) -> list[str]:
    """Where the measure of near-copies would not see a model that only repeats its training images."""
    values: dict[str, dict[str, float]] = {}
    for row in floors:
        values.setdefault(row["data"], {})[row["key"]] = row["value"]
    reciting, new = (f"floor/copy_rate_reconstruction_{split}" for split in ("train", "heldout"))
    return [
        f"Near-copies on {markdown(data)} say nothing: training images seen through the tokenizer score "
        f"{found[reciting]:.1%}, new ones {found[new]:.1%}. A model that only repeats them would not be seen."
        for data, found in values.items()
        if reciting in found and new in found and found[reciting] <= found[new]
    ]


def _at_chance(used: pd.DataFrame, records: Records) -> list[str]:
    """Models that predict no better than all codes alike."""
    nll = "eval/nll_bits_per_token"
    if nll not in used:
        return []
    lines = []
    for run_id, values in used.groupby("run_id")[nll]:
        config = records.configs.get(str(run_id))
        mean = float(values.to_numpy(dtype=float).mean())
        if config and mean >= CHANCE * math.log2(config.tokenizer.vocab_size):
            lines.append(str(run_id))
    return [f"At chance: the held-out NLL of {_some(lines)} is that of drawing all codes alike."] if lines else []


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(code, names[:3])) + more
