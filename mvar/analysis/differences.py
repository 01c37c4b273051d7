"""What a row of a sweep has over its baseline: differences paired by training seed, with confidence intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mvar.analysis.compare import CONFIDENCE, aggregate, difference
from mvar.analysis.family import KEYS as JUDGED
from mvar.analysis.family import Family, baseline_of, family_of
from mvar.analysis.manifests import AskedCell, Manifest
from mvar.analysis.records import Records
from mvar.analysis.render import Table
from mvar.analysis.tables import reported_rows
from mvar.analysis.verdicts import BETTER, INCONCLUSIVE, SMALL, WORSE, Pooled, Verdict, left_out, pooled
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
    Column("nll_needed", "seeds that ΔNLL needs", "", 0),
    Column("copy_rate", "Δ near-copies (points)", MEASURED, 1, 100),
    Column("recall", "Δ recall", MEASURED),
    Column("n", "pairs of seeds", "", 0),
)
KEYS = JUDGED | {"copy_rate": "eval/copy_rate", "recall": "eval/recall"}
NAMES = {"fid": "FID", "nll": "held-out NLL"}  # in sentences
Cells = Sequence[tuple[AskedCell, pd.DataFrame]]


def differences_table(records: Records, manifest: Manifest) -> Table | None:
    """Differences of a sweep from its baseline; None where nothing can be paired.

    Raises:
        UserError: evaluations that must not be compared.
    """
    cells = reported_rows(records, manifest)
    family = family_of(manifest, cells)
    rows, run_ids = difference_rows(manifest, cells, family)
    if not rows:
        return None
    title = f"{manifest.artefact} ({manifest.sweep}), differences from the baseline: {manifest.title}"
    reading = _reading(rows, family, _spreads(cells))
    return Table(f"{manifest.name}-differences", title, COLUMNS, rows, run_ids, reading=reading)


def difference_rows(manifest: Manifest, cells: Cells, family: Family) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Rows of the table with their verdicts, and the runs of each."""
    measured = {cell.label: rows for cell, rows in cells}
    rows: list[dict[str, Any]] = []
    run_ids: list[list[str]] = []
    for cell in manifest.cells:
        base = baseline_of(manifest, cell)
        if base is None or measured[cell.label].empty or measured[base.label].empty:
            continue
        is_one_model = set(measured[cell.label]["run_id"]) == set(measured[base.label]["run_id"])
        keys = {k: key for k, key in KEYS.items() if k != "nll" or not is_one_model}
        found = {k: difference(measured[cell.label], measured[base.label], key) for k, key in keys.items()}
        pairs = [value for value in found.values() if value]
        if not pairs:
            continue
        row: dict[str, Any] = {"label": cell.label, "baseline": base.label, **found}
        for name, verdict in _verdicts(row, family).items():
            row |= {f"{name}_verdict": verdict.told, f"{name}_needed": verdict.needed}
            row |= {f"{name}_smallest": verdict.smallest}
        rows.append(row | {"n": max(value.n for value in pairs)})
        run_ids.append(sorted({run_id for value in pairs for run_id in value.run_ids}))
    return rows, run_ids


def _verdicts(row: Mapping[str, Any], family: Family) -> dict[str, Verdict]:
    """Those on a row against its baseline, by metric."""
    labels = row["label"], row["baseline"]
    return {name: family.verdict(name, *labels) for name in JUDGED if family.has(name, *labels)}


def _spreads(cells: Cells) -> dict[str, Pooled]:
    """The pooled interval of each metric that gets verdicts, where there is one."""
    found = {}
    for name, key in JUDGED.items():
        values = (aggregate(rows, key) for _, rows in cells if not rows.empty)
        found[name] = pooled([value for value in values if value])
    return {name: spread for name, spread in found.items() if spread}


def _reading(rows: Sequence[Mapping[str, Any]], family: Family, spreads: Mapping[str, Pooled]) -> list[str]:
    lines = [
        "Each difference is paired over the training seeds that both rows have. In brackets: the "
        f"{CONFIDENCE:.0%} interval by Student's t over the pairs, each by itself; none for one pair. {family.told}",
        f"A difference of FID counts from {family.counts:.1%} of the baseline's on. Seeds needed: at which one of the "
        "size and scatter seen here is found in 80 % of trials, by the strictest step of that correction.",
    ]
    lines += [spread.told(NAMES[key]) for key, spread in spreads.items()]
    told = {row["label"]: _verdicts(row, family) for row in rows}
    for key, name in NAMES.items():
        words: dict[str, list[str]] = {}
        for label, verdicts in told.items():
            if key in verdicts:
                words.setdefault(verdicts[key].outcome, []).append(_quoted(label))
        if words:
            order = [word for word in (BETTER, WORSE, SMALL, INCONCLUSIVE) if word in words]
            said = "; ".join(f"{word}: {', '.join(words[word])}" for word in order)
            lines.append(f"{name[0].upper()}{name[1:]}, against the baseline: {said}.")
    return lines + left_out(verdict for verdicts in told.values() for verdict in verdicts.values())


def _quoted(label: str) -> str:
    """A row in a list of rows: in quotes where it has a comma of its own, as `VAR, cfg 0.5`."""
    return f'"{markdown(label)}"' if "," in label else markdown(label)
