"""What a row of a sweep has over its baseline: differences paired by training seed, with confidence intervals."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mvar.analysis.compare import CONFIDENCE, Measured, aggregate, difference
from mvar.analysis.manifests import AskedCell, Manifest
from mvar.analysis.records import Records
from mvar.analysis.render import Table
from mvar.analysis.tables import cell_rows
from mvar.analysis.verdicts import BETTER, INCONCLUSIVE, WORSE, Pooled, Verdict, judge, left_out, pooled
from mvar.escaping import markdown
from mvar.runs.columns import MEASURED, Column

COLUMNS = (
    Column("label", "row", is_text=True),
    Column("baseline", "minus", is_text=True),
    Column("fid", "ΔFID", MEASURED),
    Column("fid_verdict", "FID is", is_text=True),
    Column("fid_needed", "seeds that ΔFID needs", "", 0),
    Column("fid_smallest", "smallest ΔFID that counts", "", 3),
    Column("nll", "ΔNLL (bits/token)", MEASURED, 3),
    Column("nll_verdict", "NLL is", is_text=True),
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
JUDGED = {"fid", "nll"}  # lower is better


def baseline_of(manifest: Manifest, cell: AskedCell) -> AskedCell | None:
    """The cell that another is compared with, as its experiment has it; None for that cell itself."""
    found = manifest.experiment.against(cell, manifest.cells)
    return None if found is cell else found


def differences_table(records: Records, manifest: Manifest) -> Table | None:
    """Differences of a sweep from its baseline; None where nothing can be paired.

    Raises:
        UserError: evaluations that must not be compared.
    """
    measured = {cell.label: rows for cell, rows in cell_rows(records, manifest)}
    rows: list[dict[str, Any]] = []
    run_ids: list[list[str]] = []
    compared: dict[tuple[int, str], tuple[Measured, Measured]] = {}
    for cell in manifest.cells:
        base = baseline_of(manifest, cell)
        if base is None or measured[cell.label].empty or measured[base.label].empty:
            continue
        is_one_model = set(measured[cell.label]["run_id"]) == set(measured[base.label]["run_id"])
        keys = {k: key for k, key in KEYS.items() if k != "nll" or not is_one_model}
        found = {k: difference(measured[cell.label], measured[base.label], key) for k, key in keys.items()}
        pairs = [value for value in found.values() if value]
        if pairs:
            n = max(value.n for value in pairs)
            for name in JUDGED & found.keys():
                pair = [aggregate(measured[label], KEYS[name]) for label in (cell.label, base.label)]
                if pair[0] and pair[1]:
                    compared[len(rows), name] = pair[0], pair[1]
            rows.append({"label": cell.label, "baseline": base.label, **found, "n": n})
            run_ids.append(sorted({run_id for value in pairs for run_id in value.run_ids}))
    if not rows:
        return None
    verdicts = judge(compared)
    for (number, name), verdict in verdicts.items():
        rows[number] |= {f"{name}_verdict": verdict.told, f"{name}_needed": verdict.needed}
        if name == "fid":
            rows[number] |= counted(verdict, compared[number, name][1], manifest.experiment.counts)
    title = f"{manifest.artefact} ({manifest.sweep}), differences from the baseline: {manifest.title}"
    reading = _reading(rows, verdicts, _spread(measured), manifest.experiment.counts)
    return Table(f"{manifest.name}-differences", title, COLUMNS, rows, run_ids, reading=reading)


def counted(verdict: Verdict, base: Measured, share: float) -> dict[str, Any]:
    """The smallest difference from a baseline's FID that counts, and the verdict, which says where one does not."""
    smallest = share * base.mean
    small = verdict.word != INCONCLUSIVE and abs(verdict.mean) < smallest
    return {"fid_smallest": smallest, "fid_verdict": verdict.told + (", too small to count" if small else "")}


def _spread(measured: Mapping[str, pd.DataFrame]) -> Pooled | None:
    found = [aggregate(rows, KEYS["fid"]) for rows in measured.values() if not rows.empty]
    return pooled([value for value in found if value])


def _reading(
    rows: list[dict[str, Any]], verdicts: Mapping[Any, Verdict], spread: Pooled | None, counts: float
) -> list[str]:
    tested = sum(verdict.p is not None for verdict in verdicts.values())
    lines = [
        "Each difference is paired over the training seeds that both rows have. In brackets: the "
        f"{CONFIDENCE:.0%} interval by Student's t over the pairs, each by itself; none for one pair. Better and worse "
        f"are verdicts of paired t-tests at {1 - CONFIDENCE:.0%}, p corrected by Holm's method over those of this "
        f"table's {len(verdicts)} comparisons that have two pairs or more ({tested}); all else is inconclusive.",
        f"A difference of FID counts from {counts:.1%} of the baseline's on. Seeds needed: at which one of the size "
        "and scatter seen here is found in 80 % of trials, by the strictest step of that correction.",
    ]
    if spread:
        lines.append(
            f"If all rows scattered equally, a difference of FID would have an interval of ±{spread.half_width:.3f} "
            f"(pooled over all rows, {spread.freedom} degrees of freedom, {spread.num_seeds} seeds)."
        )
    for key, name in (("fid", "FID"), ("nll", "Held-out NLL")):
        words: dict[str, list[str]] = {}
        for (number, metric), verdict in verdicts.items():
            if metric == key:
                words.setdefault(verdict.word, []).append(markdown(rows[number]["label"]))
        if words:
            order = [word for word in (BETTER, WORSE, INCONCLUSIVE) if word in words]
            lines.append(
                f"{name}, against the baseline: " + "; ".join(f"{w}: {', '.join(words[w])}" for w in order) + "."
            )
    return lines + left_out(verdicts.values())
