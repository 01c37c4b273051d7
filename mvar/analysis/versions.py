"""Values of metrics are compared only within one version: what is masked, and what is said of it.

The version of a value stands in a row's `versions` (JSON, key -> version; what is not in it is of plain version 1).
"""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mvar.analysis.manifests import Manifest
from mvar.analysis.render import Note
from mvar.escaping import code, markdown

FIRST = "1"
COLUMN = "versions"


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dicts; what is missing is left out."""
    return [{str(k): v for k, v in row.items() if not _is_missing(v)} for row in table.to_dict("records")]


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value != value


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
        there = {version_of(row, key) for row in rows_of(rows) if key in row}
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
            rows[key] = rows[key].where([version_of(row, key) == wanted for row in rows_of(rows)])
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
                there = sorted({version_of(row, key) for row in rows_of(all_of_it) if key in row})
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
        version = wanted.get(key) or version_of(next(row for row in rows_of(found) if key in row), key)
        lacks = [row["run_id"] for row in rows_of(found) if key not in row or version_of(row, key) != version]
        if lacks:
            runs = sorted(set(lacks))
            told = f"{len(runs)} run{'s' * (len(runs) > 1)}"
            lines.append(
                f"{key} version {version} is missing for {told} ({markdown(', '.join(runs))}): "
                f"{code(manifest.command)} computes it."
            )
    return lines
