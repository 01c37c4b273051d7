"""A sweep as a table (Tables 5 and 6, Figure 5, ...): what run directories measured, and the paper's numbers apart.

What must not be compared is refused, what is missing is a dash, and nothing is filled in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mvar.analysis.compare import (
    aggregate,
    check_comparable,
    chosen_and_reported,
    duplicates,
    heldout_images,
    new_images_interval,
    ratio,
    sampling_sd,
    training_sd,
)
from mvar.analysis.family import Family, Row, family_of
from mvar.analysis.manifests import AskedCell, Manifest, Missing
from mvar.analysis.reading import order_reading, rule_reading, trend_reading
from mvar.analysis.records import Records, shared_settings
from mvar.analysis.render import Note, Table
from mvar.analysis.versions import missing_versions, newest, notes, only, other_settings
from mvar.escaping import code, markdown
from mvar.runs.experiment import paper_rows

KEYS = {
    "fid": "eval/fid",
    "is": "eval/is",
    "error": "eval/error",
    "nll": "eval/nll_bits_per_token",
    **{name: f"eval/{name}" for name in ("copy_rate", "kid", "kid_se", "precision", "recall")},
    **{name: name for name in ("train_s", "sample_s")},
}
SENTENCES: dict[str, Callable[[Sequence[Row], Family], list[str]]] = {
    "pairs": order_reading,
    "trend": trend_reading,
    "rules": rule_reading,
    "sizes": lambda rows, family: [],
    "nothing": lambda rows, family: [],
}
PAPERS_REFERENCE = (
    "VAR's printed FID and IS: 50,000 images against the reference statistics that ADM has of ImageNet, by Inception's "
    "features. M-VAR's: none of the three is published."
)
CHOOSES = (
    "Where there are several sampling seeds the first is in no number of this table or of its differences: the best "
    "setting of a model is chosen on it."
)
SHOWN = 12  # digits of a digest
CONSTANTS = ("num_params", "train_flops", "sample_flops", "steps", "acceptance_rate")  # the same for every seed


def cell_rows(records: Records, manifest: Manifest) -> list[tuple[AskedCell, pd.DataFrame]]:
    """The finished evaluations of every cell of a sweep; of metrics in several versions the newest one's values.

    Raises:
        UserError: they must not be compared; names what differs and lists the groups.
    """
    cells = [(cell, records.rows(cell)) for cell in manifest.cells]
    found = pd.concat([rows for _, rows in cells])
    if not found.empty:
        check_comparable(found, manifest.experiment.varied if manifest.is_known else ())
    wanted = newest(found)
    return [(cell, only(rows, wanted)) for cell, rows in cells] if wanted else cells


def reported_rows(records: Records, manifest: Manifest) -> list[tuple[AskedCell, pd.DataFrame]]:
    """`cell_rows`, without the sampling seed that the best setting is chosen on, where the experiment chooses one.

    Raises:
        UserError: evaluations that must not be compared.
    """
    cells = cell_rows(records, manifest)
    if not (manifest.is_known and manifest.experiment.chooses):
        return cells
    _, reported = chosen_and_reported({int(seed) for _, rows in cells if len(rows) for seed in rows["sample_seed"]})
    return [(cell, rows.loc[rows["sample_seed"].isin(reported), :] if len(rows) else rows) for cell, rows in cells]


def sweep_table(records: Records, manifest: Manifest) -> Table:
    """The table of one sweep in one mode.

    Raises:
        UserError: a sweep whose experiment is not here, or evaluations that must not be compared.
    """
    experiment = manifest.experiment
    cells = reported_rows(records, manifest)
    own = {column.key: column.key for column in experiment.columns if column.key.startswith("eval/")}
    rows = [_row(cell, found, own) for cell, found in cells]
    keys = {column.key: (KEYS | own)[column.key] for column in experiment.columns if column.key in KEYS | own}
    measured = [key for key in keys.values() if key.startswith("eval/")]
    whole = [records.rows(cell) for cell in manifest.cells]
    found = pd.concat([found.assign(row=number) for number, (_, found) in enumerate(cells)])
    if experiment.relative_to:
        _add_relative(rows, cells, experiment.relative_to)
    return Table(
        name=manifest.name,
        title=f"{manifest.artefact} ({manifest.sweep}): {manifest.title}",
        columns=experiment.columns,
        rows=rows,
        run_ids=[sorted(set(found["run_id"])) for _, found in cells],
        notes=[*contradictions(manifest.artefact, rows), *notes([rows for _, rows in cells], whole, keys)],
        reading=_reading(manifest, found, rows, family_of(manifest, cells)),
        missing=[
            *(missing_lines([m for m in records.missing if m.sweep == manifest.name]) + _unasked(manifest)),
            *missing_versions(pd.concat(whole), manifest.command, measured),
            *other_settings(records.store, pd.concat(whole), manifest.command, measured),
        ],
        caption="" if found.empty else f"{_seeds_line(_seeds(rows))} {images_line(found, _has_printed(rows))}",
    )


def missing_lines(missing: Sequence[Missing]) -> list[str]:
    """What the dashes of a table want: a line for each command, with the runs that it makes."""
    commands: dict[str, list[str]] = {}
    for m in missing:
        commands.setdefault(m.command, []).append(markdown(f"{m.label} ({m.run_id}: {m.why})"))
    return [f"Missing here: {'; '.join(runs)}. Command: {code(command)}" for command, runs in commands.items()]


def _unasked(manifest: Manifest) -> list[str]:
    left = [cell.label for cell in manifest.cells if not cell.run_ids]
    if len(left) == len(manifest.cells):
        return [f"No run of this was asked for yet. Command: {code(manifest.command)}"]
    rows = "; ".join(map(markdown, left))
    return [f"Not asked for: {rows}. Command for all rows: {code(manifest.asking)}"] if left else []


def _row(cell: AskedCell, found: pd.DataFrame, own: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"label": cell.label, **cell.axes}
    row |= {f"paper_{key}": value for key, value in cell.printed.items()}
    row["paper_fid"] = _number(row.get("paper_fid"))
    if found.empty:
        return row
    row |= {name: aggregate(found, key) for name, key in (KEYS | dict(own)).items()}
    row |= {name: _constant(found, name) for name in CONSTANTS}
    return row | {"n": found["seed"].nunique()}


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int) else value


def _constant(found: pd.DataFrame, name: str) -> int | float | None:
    values = found[name].dropna().unique() if name in found else []
    if not len(values):
        return None
    return values[0].item() if isinstance(values[0], np.generic) else values[0]


def _add_relative(rows: list[dict[str, Any]], cells: list[tuple[AskedCell, pd.DataFrame]], label: str) -> None:
    """Cost and time relative to the reference row: measured (paired by seed) and analytic."""
    reference = next((found for cell, found in cells if cell.label == label and not found.empty), None)
    if reference is None:
        return
    for row, (_, found) in zip(rows, cells, strict=True):
        if found.empty:
            continue
        row["train_cost"] = ratio(found, reference, "train_step_ms")
        row["inference"] = ratio(found, reference, "sample_s")
        for name, key in (("train_cost_analytic", "forward_flops"), ("inference_analytic", "sample_flops")):
            own, base = _constant(found, key), _constant(reference, key)
            row[name] = own / base if own and base else None


def contradictions(artefact: str, rows: list[dict[str, Any]]) -> list[Note]:
    """Where the paper disagrees with itself or with arithmetic, as notes on the cells concerned."""
    notes = []
    for entry in paper_rows("contradictions"):
        if entry["artefact"] != artefact:
            continue
        if entry["row"] == "*":
            notes.append(Note(None, entry["column"], entry["note"]))
        notes += [Note(i, entry["column"], entry["note"]) for i, row in enumerate(rows) if row["label"] == entry["row"]]
    return sorted(notes, key=lambda note: -1 if note.row is None else note.row)


def _seeds(rows: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({row["n"] for row in rows if "n" in row})


def _reading(manifest: Manifest, found: pd.DataFrame, rows: list[dict[str, Any]], family: Family) -> list[str]:
    if found.empty:
        return ["Nothing is measured yet."]
    lines = [_seeds_line(_seeds(rows)), _sampling_line(found), _settings_line(found, _has_printed(rows))]
    lines += SENTENCES[manifest.experiment.compares](rows, family)
    lines += [*manifest.experiment.notes, *([CHOOSES] if manifest.experiment.chooses else [])]
    if manifest.mode == "budget":
        lines.append(
            "Every row spends the same training FLOPs, so the number of steps differs. The paper trains all rows "
            "equally long: its printed values belong to the other mode."
        )
    if set(found["data"]) == {"digits"}:
        lines.append(
            "These are 8 x 8 digits, small models and minutes of training: the table says how these settings behave, "
            "not which mixer is better."
        )
    return lines


def _sampling_line(found: pd.DataFrame) -> str:
    """What drawing other images is worth, apart from training again; and what was not varied."""
    sd, training = sampling_sd(found, "eval/fid"), training_sd(found, "eval/fid")
    each = (("run_id", "sample_seed"), ("row", "seed"))
    sets, seeds = (max(len(set(values)) for _, values in found.groupby(by)[of]) for by, of in each)
    line = "One set of images a run: what drawing other images is worth is not known."
    if sets > 1:
        line = f"Up to {sets} sets of images a run (sampling seeds), averaged before seeds are compared."
    if sd is not None:
        line += (
            f" Over sampling seeds of one training FID has a standard deviation of {sd:.2f}: what drawing other images "
            "is worth."
        )
    if training is not None:
        line += f" Over training seeds it has one of {training:.2f} with that taken out."
    fixed = [name for name, count in (("sampling seed", sets), ("training seed", seeds)) if count == 1]
    rest = ", ".join([*fixed, "tokenizer", "feature extractor", "split of the data"])
    return f"{line} Not varied: {rest}; their choice is in no interval here."


def _seeds_line(seeds: list[int]) -> str:
    if seeds == [1]:
        return "One seed a row: there is no standard deviation, and a difference between two rows may be chance."
    counts = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
    single = " A row with one seed has none." if seeds[0] == 1 else ""
    return f"Mean ± sample standard deviation over {counts} training seeds.{single}"


def images_line(found: pd.DataFrame, beside_paper: bool) -> str:
    """What the metrics are measured against, and where printed values stand beside them, what those are."""
    images, settings = int(found["num_images"].iloc[0]), shared_settings(found)
    data, name = markdown(", ".join(sorted(found["data"].unique()))), markdown(str(settings["evaluation.extractor"]))
    count, digest = f"{settings['reference.num_images']:,}", settings.get("reference.sha256")
    factor = settings.get("reference.resize_factor")
    resized = f" (shorter side resized to {factor:g} times their size)" if factor else ""
    line = (
        f"All metrics: {images:,} images a set against {count} held-out images{resized} of {data}, by features of "
        f"{name}."
    )
    if digest:
        file = f"{markdown(str(settings.get('reference.file')))} (sha256 {str(digest)[:SHOWN]})"
        line = (
            f"All metrics of {data}: {images:,} images a set, by features of {name}. FID and sFID are against the "
            f"statistics of {file}, KID, precision and recall against its {count} images, near-copies against held-out "
            "ones."
        )
    return f"{line} {PAPERS_REFERENCE}" if beside_paper else line


def _has_printed(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a table has values of the paper beside ours."""
    return any(row.get("paper_fid") is not None or row.get("paper_is") is not None for row in rows)


def _settings_line(found: pd.DataFrame, beside_paper: bool) -> str:
    line = (
        f"{images_line(found, beside_paper)} With fewer images FID comes out higher for the same model: its bias is "
        "upwards. So it compares only with FIDs of the same counts. Sampling time is for the whole set."
    )
    return line + _copies_line(found)


def _copies_line(found: pd.DataFrame) -> str:
    """What a near-copy is, what new images would score, and how surely a share of so many images is known."""
    shares = _known(found, "eval/copy_rate_heldout")
    if not len(shares):
        return ""
    share, images, heldout = float(shares.mean()), int(found["num_images"].iloc[0]), heldout_images(found)
    line = f" Near-copies lie nearer to a training image than the nearest {share:.1%} of held-out images do"
    if heldout:
        low, high = new_images_interval(share, heldout, images)
        line += (
            f": so many of {images:,} new images would be {low:.1%} to {high:.1%} (95 %, beta-binomial: the threshold "
            "rests on so many held-out images too)"
        )
    line += "."
    for counted, told in ((False, "left out of"), (True, "counted, as in the first reading of data, in")):
        if both := duplicates(found, counted):
            line += f" Held-out images that are training images too: {both:,}, {told} that threshold."
    return line


def _known(found: pd.DataFrame, column: str) -> np.ndarray:
    """The values of a column that are there."""
    values = found[column].to_numpy(dtype=float) if column in found else np.array([])
    return values[~np.isnan(values)]
