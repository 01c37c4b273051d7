"""Values of metrics are compared only within one version: what is masked, and what is said of it.

The version of a value stands in a row's `versions` (JSON, key -> version; what is not in it is of plain version 1).
"""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mvar.analysis.render import Note
from mvar.escaping import code, markdown
from mvar.runs.measured import measured
from mvar.runs.store import Store

FIRST = "1"
COLUMN = "versions"
NAMED = 12  # runs that a sentence names


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
    """The version that a table compares, for each key of which rows have several: the newest.

    Of settings within one version those that most rows have; of equally many the defaults.
    """
    if COLUMN not in rows:
        return {}
    found: dict[str, str] = {}
    keys = {key for told in rows[COLUMN].dropna() for key in json.loads(str(told))}
    for key in sorted(key for key in keys if key in rows):
        there = Counter(version_of(row, key) for row in rows_of(rows) if key in row)
        if len(there) > 1:
            found[key] = max(there, key=lambda version: (number(version), there[version], " " not in version, version))
    return found


def number(version: str) -> int:
    """The number of a version, which may have settings behind it: `2 (k=10)`."""
    return int(version.partition(" ")[0])


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
    for line, (ours, all_of_it) in enumerate(zip(kept, whole, strict=True)):
        for column, key in keys.items():
            if key in all_of_it and all_of_it[key].notna().to_numpy().any() and not ours[key].notna().to_numpy().any():
                there = sorted({version_of(row, key) for row in rows_of(all_of_it) if key in row})
                found.append(Note(line, column, f"of version {', '.join(there)}, which is not compared here"))
    return found


def entry_of(store: Store, row: Any, key: str) -> tuple[str, dict[str, Any]] | None:
    """The metric that gave a row's value, and what its record says of it; None where nothing is recorded."""
    record = store.run(str(row["run_id"])).evaluations().get(str(row["evaluation_id"]))
    return next((found for found in measured(record).items() if key in found[1]["keys"]), None) if record else None


def missing_versions(found: pd.DataFrame, command: str, keys: Sequence[str]) -> list[str]:
    """What runs of a table lack of metrics that others of it have: which version, how many, and the command.

    Args:
        found: all rows of a table, nothing masked.
        command: that asks for them.
        keys: of the table's metrics.
    """
    rows, wanted, lines = rows_of(found), newest(found), []
    for key in keys:
        if not (first := next((row for row in rows if key in row), None)):
            continue
        version = wanted.get(key) or version_of(first, key)
        older = [row for row in rows if key not in row or number(version_of(row, key)) != number(version)]
        if older:
            lines.append(f"{key} version {version} is missing for {_told(older)}: {code(command)} computes it.")
    return lines


def other_settings(store: Store, found: pd.DataFrame, command: str, keys: Sequence[str]) -> list[str]:
    """Which runs of a table have a metric in other settings than those that it compares.

    Args:
        store: the results, whose records know the settings.
        found, command, keys: as `missing_versions`.
    """
    rows, lines = rows_of(found), []
    for key, version in newest(found).items():
        there = [row for row in rows if key in row and key in keys]
        others = [row for row in there if version_of(row, key) != version]
        for text in dict.fromkeys(version_of(row, key) for row in others):
            if number(text) == number(version):
                alike = next(row for row in there if version_of(row, key) == version)
                lines.append(_otherwise(store, key, alike, [r for r in others if version_of(r, key) == text], command))
    return lines


def _told(rows: Sequence[Any]) -> str:
    names = sorted({row["run_id"] for row in rows})
    more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
    return f"{len(names)} run{'s' * (len(names) > 1)} ({markdown(', '.join(names[:NAMED]))}{more})"


def _otherwise(store: Store, key: str, alike: Any, others: Sequence[Any], command: str) -> str:
    """That rows were measured with other settings than those which are compared: which, and how to measure alike."""
    (name, ours), (_, theirs) = (entry_of(store, row, key) or ("", {}) for row in (alike, others[0]))
    usual = (theirs.get("defaults") or {}) | (ours.get("defaults") or {})
    mine, there = (usual | (entry.get("settings") or {}) for entry in (ours, theirs))
    differ = sorted(field for field in {*mine, *there} if mine.get(field) != there.get(field))
    told = [f"{field}={there.get(field, 'its default')} and not {mine.get(field, 'its default')}" for field in differ]
    known = [f"evaluation.{name}.{field}={mine[field]}" for field in differ if field in mine]
    how = f": {code(shlex.join([*shlex.split(command), '--set', *known]))} measures it alike" if known else ""
    return f"{key} is of {', '.join(told)} for {_told(others)}, and so not compared{how}."
