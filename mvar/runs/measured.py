"""Which metrics a stored evaluation has, of which versions, and which of those that there are now it lacks.

`eval.json` keeps all values of an evaluation in one flat `metrics`, as from the first version on, and beside it, by
metric, `measured`: version, keys, settings that are not at their defaults, the plug-in of a metric of a user's own,
and values of earlier versions. Settings of a metric that nobody gives are those that its record has: a value that was
measured with `k=10` stays until another `k` is asked for. Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from mvar import layout, plugins
from mvar.config import RunConfig, identity
from mvar.errors import UserError, warn_once
from mvar.evaluation.metrics.contract import DRAWN, Metric, every_metric
from mvar.registries import EXTRACTORS, METRICS, MIXERS, SOURCES
from mvar.registry import Registry, loaded
from mvar.runs.store import RunDirectory

# In files of the first version it stood after precision and recall, and so it does in new ones.
AFTER = {"eval/kid_subset_size": "precision_recall"}

# What of a run's own choices a metric rests on, by what it needs; drawn images are there and rest on none.
CHOSEN_FOR: dict[str, frozenset[Registry[Any]]] = {
    "samples": frozenset(),
    "reference": frozenset({SOURCES}),
    "heldout": frozenset({SOURCES}),
    "features": frozenset({SOURCES, EXTRACTORS}),
    "spatial": frozenset({SOURCES, EXTRACTORS}),
    "train": frozenset({SOURCES}),
    "weights": frozenset({MIXERS}),
    "tokens": frozenset({SOURCES}),
}

OF_WEIGHTS = frozenset({"weights", "tokens"})  # what is the same however images are drawn


def chosen_for(names: Iterable[str]) -> frozenset[Registry[Any]]:
    """The kinds of what must be loaded to compute some metrics of a finished run: no plug-in of another is needed."""
    return frozenset().union(*(CHOSEN_FOR[needed] for name in names for needed in METRICS.find(name).needs))


def settings_of(record: Mapping[str, Any] | None, name: str, config: RunConfig) -> Any:
    """A metric's settings: those that the config gives, else those of its record, else its defaults; None without any.

    Those of a record that the metric's own class allows no more count as none.
    """
    evaluation = config.evaluation
    kept, kind = measured(record).get(name, {}).get("settings") if record else None, evaluation.settings_class(name)
    if kept and kind and evaluation.given_settings(name) is None:
        with suppress(ValidationError):
            return kind.model_validate(kept)
    return evaluation.settings_of(name)


def told_settings(settings: Any) -> dict[str, Any]:
    """Of a metric's settings those that are not at their defaults, as JSON values."""
    return settings.model_dump(mode="json", exclude_defaults=True) if settings else {}


def measured(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a record says of each metric that it has; a record of the first version has ours, in version 1."""
    there = record.get("measured")
    found = {name: entry for name, entry in there.items() if _is_entry(entry)} if isinstance(there, dict) else {}
    for name, path in METRICS.paths.items():
        kind: type[Metric] = loaded(path)
        if name not in found and kind.keys[0] in record["metrics"]:
            found[name] = {"version": 1, "keys": [key for key in record["metrics"] if kind.gives(key)]}
    return found


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("version")) is int and isinstance(entry.get("keys"), list)


def versions(record: Mapping[str, Any]) -> dict[str, str]:
    """The version of each key, as tables compare it: number and settings; those of plain version 1 are left out."""
    found = {}
    for entry in measured(record).values():
        if (told := version_text(entry)) != "1":
            found |= {key: told for key in entry["keys"] if isinstance(key, str)}
    return found


def version_text(entry: Mapping[str, Any]) -> str:
    """`2`, or with settings `2 (k=5)`."""
    settings = entry.get("settings") or {}
    told = ", ".join(f"{name}={value}" for name, value in sorted(settings.items())) if settings else ""
    return f"{entry['version']} ({told})" if told else str(entry["version"])


def lacking(record: Mapping[str, Any] | None, config: RunConfig) -> list[str]:
    """The metrics that there are now and that a record does not have in their version and settings.

    Raises:
        UserError: as `every_metric`; `evaluation.also` names one that runs of this config cannot have.
    """
    there = measured(record) if record else {}
    found = []
    for name, kind in every_metric().items():
        entry, asked = there.get(name), name in config.evaluation.also
        if asked and not kind.applies(config):
            raise UserError(f"evaluation.also: {name} cannot be had of {config.evaluation.extractor}: {kind.about()}")
        if entry is None:
            if kind.applies(config) and (asked or kind.by_default(config)):
                found.append(name)
        elif entry["version"] < kind.version or _asks_otherwise(entry, name, config):
            found.append(name)
    return found


def _asks_otherwise(entry: Mapping[str, Any], name: str, config: RunConfig) -> bool:
    given = config.evaluation.given_settings(name)
    return given is not None and (entry.get("settings") or {}) != told_settings(given)


def to_measure(run: RunDirectory, config: RunConfig) -> list[str]:
    """The metrics that an evaluation of a run lacks and that can be computed; says what cannot, in one line."""
    names = lacking(run.evaluations().get(config.evaluation_id), config)
    if not names or (run.samples(config.evaluation_id) / layout.SAMPLES_NPZ).is_file():
        return names
    gone = [name for name in names if DRAWN & set(METRICS.find(name).needs)]
    if gone and run.is_done(config.evaluation_id):
        warn_once(
            f"run {run.name}: the images of evaluation {config.evaluation_id} were deleted: no {', '.join(gone)} of "
            "them; what is there stays"
        )
        return [name for name in names if name not in gone]
    return names


def recalled(record: Mapping[str, Any], name: str, config: RunConfig) -> dict[str, float] | None:
    """The values of a metric in its version and settings of now, where they were measured once and then replaced."""
    settings = told_settings(settings_of(record, name, config))
    wanted = _identity({"version": METRICS.find(name).version, "settings": settings})
    for earlier in measured(record).get(name, {}).get("earlier", []):
        if _identity(earlier) == wanted:
            return dict(earlier["metrics"])
    return None


def of_same_weights(run: RunDirectory, name: str, own: Mapping[str, Any], config: RunConfig) -> dict[str, float] | None:
    """The values of a metric that needs no images, where another evaluation of the run has it of the same weights.

    A likelihood does not depend on how images are drawn: it is computed once for all sampling seeds and all guidance.
    Everything else that a metric may read must be the same: its version and settings, and the evaluation's own.

    Args:
        run: whose evaluations are looked at.
        name: of the metric.
        own: the record that lacks it.
        config: of that record.
    """
    kind: type[Metric] = METRICS.find(name)
    if not set(kind.needs) <= OF_WEIGHTS:
        return None
    evaluation = identity.as_document(config.evaluation)
    wanted = _identity({"version": kind.version, "settings": told_settings(settings_of(own, name, config))})
    for record in run.evaluations().values():
        entry = measured(record).get(name)
        is_same = record["evaluation"] == evaluation and record["sample"].get("ema", 0) == config.sample.ema
        if entry and is_same and _identity(entry) == wanted and record["metrics"].keys() >= set(entry["keys"]):
            return {key: record["metrics"][key] for key in entry["keys"]}
    return None


def with_metric(record: Mapping[str, Any], name: str, values: Mapping[str, float], config: RunConfig) -> dict[str, Any]:
    """A record with a metric's values; those of another version or other settings are kept under `earlier`."""
    kind: type[Metric] = METRICS.find(name)
    entry: dict[str, Any] = {"version": kind.version, "keys": list(values)}
    given = settings_of(record, name, config)
    if settings := told_settings(given):
        usual = type(given)().model_dump(mode="json")
        entry |= {"settings": settings, "defaults": {field: usual[field] for field in settings}}
    if name not in METRICS.paths:
        directions = {"lower": list(kind.lower), "higher": list(kind.higher)}
        entry |= {"about": kind.about(), **directions}
        owner = METRICS.owners.get(name)
        for one in plugins.loaded():
            if one.name == owner:
                entry["plugin"] = {"name": one.name, "path": one.path, "sha256": one.sha256}
    metrics, there = dict(record["metrics"]), measured(record)
    if before := there.get(name):
        old = {key: metrics.pop(key) for key in before["keys"] if key in metrics}
        told = {"version": before["version"], **({"settings": before["settings"]} if before.get("settings") else {})}
        kept = [one for one in before.get("earlier", []) if _identity(one) not in (_identity(told), _identity(entry))]
        if _identity(told) != _identity(entry):
            kept.append({**told, "metrics": old})
        if kept:
            entry["earlier"] = kept
    there[name] = entry
    return {**record, "metrics": _ordered(metrics | dict(values), there), "measured": there}


def _identity(entry: Mapping[str, Any]) -> tuple[int, str]:
    return entry["version"], version_text(entry)


def _ordered(metrics: Mapping[str, float], there: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The values in the order of the registry, whenever each was computed."""
    names: Sequence[str] = METRICS.names()
    place = {key: names.index(name) if name in names else len(names) for name, e in there.items() for key in e["keys"]}
    place |= {key: names.index(name) for key, name in AFTER.items()}
    return {key: metrics[key] for key in sorted(metrics, key=lambda k: (place.get(k, len(names)), k in AFTER))}
