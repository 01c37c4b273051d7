"""Values of metrics are compared only within one version: what is masked, and what is said of it.

The version of a value stands in a row's `versions` (JSON, key -> version; what is not in it is of plain version 1).
"""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mvar.analysis.records import Manifest
from mvar.analysis.render import Note
from mvar.escaping import code, markdown

FIRST = "1"
COLUMN = "versions"


def version_of(row: Any, key: str) -> str:
    """The version of a row's value."""
    told = row.get(COLUMN)
    return json.loads(told).get(key, FIRST) if isinstance(told, str) else FIRST


def newest(rows: pd.DataFrame) -> dict[str, str]:
    """The version that a table compares, for each key of which rows have several: the newest."""
    if COLUMN not in rows:
        return {}
    found: dict[str, str] = {}
    keys = {key for told in rows[COLUMN].dropna() for key in json.loads(str(told))}
    for key in sorted(key for key in keys if key in rows):
        there = {version_of(row, key) for _, row in rows[rows[key].notna()].iterrows()}
        if len(there) > 1:
            found[key] = max(there, key=_rank)
    return found


def _rank(version: str) -> tuple[int, str]:
    return int(version.partition(" ")[0]), version


def only(rows: pd.DataFrame, versions: dict[str, str]) -> pd.DataFrame:
    """Rows in which values of other versions are missing."""
    rows = rows.copy()
    for key, wanted in versions.items():
        if key in rows:
            rows[key] = rows[key].where([version_of(row, key) == wanted for _, row in rows.iterrows()])
    return rows


def notes(kept: Sequence[pd.DataFrame], whole: Sequence[pd.DataFrame], keys: dict[str, str]) -> list[Note]:
    """A note on each cell of a table that is a dash because its value is of another version.

    Args:
        kept: the rows of each line of the table, without what must not be compared.
        whole: the same with it.
        keys: key of a metric by column.
    """
    found = []
    for number, (ours, all_of_it) in enumerate(zip(kept, whole, strict=True)):
        for column, key in keys.items():
            if key in all_of_it and all_of_it[key].notna().to_numpy().any() and not ours[key].notna().to_numpy().any():
                there = sorted({version_of(row, key) for _, row in all_of_it.iterrows()})
                found.append(Note(number, column, f"of version {', '.join(there)}, which is not compared here"))
    return found


def missing_versions(found: pd.DataFrame, manifest: Manifest, keys: Sequence[str]) -> list[str]:
    """What runs of a table lack of metrics that others of it have: which version, how many, and the command.

    Args:
        found: all rows of a table, nothing masked.
        manifest: what was asked for.
        keys: of the table's metrics.
    """
    wanted, lines = newest(found), []
    for key in keys:
        if key not in found or not found[key].notna().to_numpy().any():
            continue
        version = wanted.get(key) or version_of(next(r for _, r in found.iterrows() if pd.notna(r[key])), key)
        lacks = [row["run_id"] for _, row in found.iterrows() if pd.isna(row[key]) or version_of(row, key) != version]
        if lacks:
            runs = sorted(set(lacks))
            told = f"{len(runs)} run{'s' * (len(runs) > 1)}"
            lines.append(
                f"{key} version {version} is missing for {told} ({markdown(', '.join(runs))}): "
                f"{code(manifest.command)} computes it."
            )
    return lines
