"""What a row of a sweep has over its baseline: differences paired by training seed, with confidence intervals."""

from typing import Any

from analysis.compare import CONFIDENCE, Difference, difference
from analysis.records import Cell, Manifest, Records
from analysis.render import MEASURED, Column, Table
from analysis.tables import cell_rows
from mvar.escaping import markdown

COLUMNS = (
    Column("label", "row", is_text=True),
    Column("baseline", "minus", is_text=True),
    Column("fid", "ΔFID", MEASURED),
    Column("nll", "ΔNLL (bits/token)", MEASURED, 3),
    Column("copy_rate", "Δ near-copies (points)", MEASURED, 1, 100),
    Column("recall", "Δ recall", MEASURED),
    Column("n", "pairs of seeds", "", 0),
)
KEYS = {
    "fid": "eval/fid",
    "nll": "eval/nll_bits_per_token",
    "copy_rate": "eval/copy_rate",
    "recall": "eval/recall",
}


def baseline_of(manifest: Manifest, cell: Cell) -> Cell | None:
    """The cell that another is compared with: VAR (the first row), under rejection the same model's every image."""
    if manifest.sweep == "rejection":
        same = [other for other in manifest.cells if other.axes["pattern"] == cell.axes["pattern"]]
        found = next(other for other in same if other.axes["candidates"] == 1)
    else:
        found = manifest.cells[0]
    return None if found is cell else found


def differences_table(records: Records, manifest: Manifest) -> Table | None:
    """Differences of a sweep from its baseline; None where nothing can be paired.

    Raises:
        UserError: evaluations that must not be compared.
    """
    measured = {cell.label: rows for cell, rows in cell_rows(records, manifest)}
    rows: list[dict[str, Any]] = []
    run_ids: list[list[str]] = []
    for cell in manifest.cells:
        base = baseline_of(manifest, cell)
        if base is None or measured[cell.label].empty or measured[base.label].empty:
            continue
        keys = {k: key for k, key in KEYS.items() if k != "nll" or manifest.sweep != "rejection"}  # one model there
        found = {k: difference(measured[cell.label], measured[base.label], key) for k, key in keys.items()}
        pairs = [value for value in found.values() if value]
        if pairs:
            n = max(value.n for value in pairs)
            rows.append({"label": cell.label, "baseline": base.label, **found, "n": n})
            run_ids.append(sorted({run_id for value in pairs for run_id in value.run_ids}))
    if not rows:
        return None
    title = f"{manifest.artefact} ({manifest.sweep}), differences from the baseline: {manifest.title}"
    return Table(f"{manifest.name}-differences", title, COLUMNS, rows, run_ids, reading=_reading(rows))


def _reading(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Each difference is paired over the training seeds that both rows have. In brackets: the "
        f"{CONFIDENCE:.0%} interval by Student's t over the pairs; none for one pair. It is not corrected for the "
        "number of rows."
    ]
    for key, name in (("fid", "FID"), ("nll", "held-out NLL")):
        found = [(markdown(row["label"]), row[key]) for row in rows if isinstance(row.get(key), Difference)]
        sure = [f"{label} ({'lower' if d.mean < 0 else 'higher'})" for label, d in found if d.excludes_zero]
        known = [d for _, d in found if d.excludes_zero is not None]
        if not found:
            continue
        if not known:
            lines.append(f"{name}: one pair a row, so whether a difference is chance is not known.")
        else:
            told = ", ".join(sure) or "no row"
            lines.append(f"{name}: the interval excludes 0 for {told}; of {len(known)} rows.")
    return lines
