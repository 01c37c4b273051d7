"""Metrics that no table of ours names, a user's own and ours that are measured where they are asked for."""

from typing import Any

from mvar.analysis.records import Records
from mvar.analysis.render import Table
from mvar.analysis.versions import FIRST, entry_of, newest, notes, only, other_settings, rows_of, version_of
from mvar.config import RunConfig
from mvar.escaping import code, markdown
from mvar.evaluation.metrics.contract import Metric
from mvar.registries import METRICS
from mvar.registry import loaded
from mvar.runs.columns import MEASURED, Column

SHOWN = 12  # digits of a digest


def own_keys(records: Records) -> list[str]:
    """Keys of the table that none of the metrics gives which every run has."""
    usual = RunConfig()
    kinds: list[type[Metric]] = [loaded(path) for path in METRICS.paths.values()]
    ours = [kind for kind in kinds if kind.by_default(usual)]
    keys = [key for key in records.done.columns if str(key).startswith("eval/")]
    keys = [key for key in keys if records.done[key].notna().to_numpy().any()]
    return [key for key in keys if not any(kind.gives(key) for kind in ours)]


def own_table(records: Records) -> Table | None:
    """A row a finished evaluation, a column a key; None where there is no such metric."""
    keys = own_keys(records)
    if not keys:
        return None
    whole = records.done
    rows = only(whole, newest(whole))
    told = _told(records, keys)
    arrows = {key: " ↓" if key in told[key]["lower"] else " ↑" if key in told[key]["higher"] else "" for key in keys}
    columns = [Column("label", "run", is_text=True)]
    columns += [Column(key, f"{key.removeprefix('eval/')}{arrows[key]}", MEASURED, 4) for key in keys]
    values = [{"label": row["run_id"], **{key: row.get(key) for key in keys}} for row in rows_of(rows)]
    lines = dict.fromkeys(told[key]["line"] for key in keys)
    kept, all_of_it = ([found.iloc[[n]] for n in range(len(found))] for found in (rows, whole))
    return Table(
        "own-metrics",
        "Further metrics",
        columns,
        values,
        [[str(row["label"])] for row in values],
        notes=notes(kept, all_of_it, {key: key for key in keys}),
        reading=list(lines),
        missing=other_settings(records.store, whole, "mvar evaluate RUN", keys),
    )


def _told(records: Records, keys: list[str]) -> dict[str, dict[str, Any]]:
    """What the runs say of each key: a line, and which way is better."""
    found = {key: {"line": f"{code(key)}: nothing is recorded of it.", "lower": [], "higher": []} for key in keys}
    rows = records.done
    for key in keys:
        wanted = newest(rows).get(key)
        for row in rows_of(rows):
            if key not in row or (wanted and version_of(row, key) != wanted):
                continue
            if recorded := entry_of(records.store, row, key):
                name, entry = recorded[0], _of_ours(recorded[0]) | recorded[1]
                found[key] = {
                    "line": _line(name, entry, version_of(row, key)),
                    **{way: entry.get(way) or [] for way in ("lower", "higher")},
                }
            break
    return found


def _of_ours(name: str) -> dict[str, Any]:
    """What the record of a metric of one's own says of it, for one of ours."""
    if name not in METRICS.paths:
        return {}
    kind: type[Metric] = loaded(METRICS.paths[name])
    return {"about": kind.about(), "lower": list(kind.lower), "higher": list(kind.higher)}


def _line(name: str, entry: dict[str, Any], version: str) -> str:
    plugin = entry.get("plugin")
    by = f"; of {markdown(str(plugin['name']))}, sha256 {str(plugin['sha256'])[:SHOWN]}" if plugin else ""
    number = f", version {markdown(version)}" if version != FIRST else ""
    return f"{code(name)}{number}: {markdown(str(entry.get('about') or 'says nothing of itself'))}{by}"
