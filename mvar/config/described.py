"""What a config's fields are, for people: default, description, what is allowed; and a whole config as YAML.

Settings of what is chosen by name are fields too; a class is loaded only where its settings are asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mvar.config.allowed import allowed, typed
from mvar.config.evaluation_sections import EvaluationConfig
from mvar.config.extensible import Config, Extensible, no_settings
from mvar.config.identity import PATHS
from mvar.config.model_section import ModelConfig
from mvar.config.parsing import DERIVED, current_name
from mvar.config.schema import RunConfig
from mvar.errors import UserError, one_of
from mvar.registries import METRICS, MIXERS

# No fields, but what may be set: default, what is allowed, and what it does.
CHANGES: dict[str, tuple[str, str, str]] = {
    "model.replace": (
        "none",
        "none, all, first:N, last:N, every:N or a list such as 0,3,5",
        "Layers of model.pattern that get model.replacement (M-VAR's Figure 5).",
    ),
    "model.replacement": ("intra+mamba", "mixers of a layer", "Mixers of the layers that model.replace selects."),
}


@dataclass(frozen=True)
class FieldFacts:
    """A field of a config."""

    name: str  # dotted, as `--set` takes it
    default: Any  # a JSON value
    allowed: str
    description: str

    @property
    def lines(self) -> tuple[str, str]:
        """Name, default and what is allowed; and the description."""
        return f"{self.name} = {typed(self.default)} ({self.allowed})", f"    {self.description}"


# Fields -------------------------------------------------------------------------------------------------------------


def fields_of(config: RunConfig, prefix: str = "") -> list[FieldFacts]:
    """Every field, in the order of the schema, those of settings behind the fields of their section.

    Args:
        config: whose values are the defaults.
        prefix: a field or section, dotted, e.g. `model.mamba`; empty: all.

    Raises:
        UserError: no such field or section; names those that there are.
    """
    prefix = current_name(RunConfig, prefix)
    if prefix and prefix not in DERIVED:
        _check(config, prefix)
    return [found for found in _walk(config, "", prefix) if _is_below(found.name, prefix)]


def _is_below(name: str, prefix: str) -> bool:
    return not prefix or f"{name}.".startswith(f"{prefix}.")


def _check(config: RunConfig, prefix: str) -> None:
    section: Any = config
    where = ""
    for part in prefix.split("."):
        if not isinstance(section, Config):
            raise UserError(f"fields: {where} is a field, no section; allowed: {where}")
        kind = type(section)
        if part in kind.model_fields:
            section = getattr(section, part)
        elif not issubclass(kind, Extensible) or not isinstance(section, Extensible):
            raise one_of(f"field {where}".strip(), part, kind.model_fields)
        elif kind.settings_class(part) is None:
            raise no_settings(kind, part, kind.model_fields)
        else:
            section = section.settings_of(part)
        where = f"{where}.{part}".lstrip(".")


def _walk(section: Config, where: str, prefix: str) -> Iterator[FieldFacts]:
    """The fields of a section and of those in it that are asked for; of others no class is loaded."""
    kind, inner = type(section), []
    values = section.model_dump(mode="json")
    for field, info in kind.model_fields.items():
        name = f"{where}{field}"
        if isinstance(value := getattr(section, field), Config):
            inner.append((name, value))
        else:
            yield FieldFacts(name, values[field], _allowed(kind, field, name), info.description or "")
    if isinstance(section, ModelConfig):
        yield from (FieldFacts(name, *facts) for name, facts in CHANGES.items())
    for name, value in inner:
        if _is_on_the_way(name, prefix):
            yield from _walk(value, f"{name}.", prefix)
    if isinstance(section, Extensible):
        for name in dict.fromkeys(name for registry in section.REGISTRIES for name in registry.names()):
            dotted = f"{where}{name}"
            if _is_on_the_way(dotted, prefix) and section.settings_class(name) is not None:
                yield from _walk(section.settings_of(name), f"{dotted}.", prefix)


def _is_on_the_way(section: str, prefix: str) -> bool:
    return _is_below(section, prefix) or _is_below(prefix, section)


# What is allowed ----------------------------------------------------------------------------------------------------


def _allowed(kind: type[BaseModel], field: str, name: str) -> str:
    if issubclass(kind, Extensible) and field in kind.CHOICES:
        return ", ".join(kind.CHOICES[field].names())
    if name == "model.pattern":
        return f"mixers of every layer, of {', '.join(MIXERS.names())}"
    told = allowed(kind, field)
    return told.replace("text", "path") if name in PATHS else told


# A whole config -----------------------------------------------------------------------------------------------------


def resolved(config: RunConfig) -> dict[str, Any]:
    """The whole config as JSON values, and beside them, in full, the settings of what it uses by name.

    Settings of mixers stand in the pattern's text. A config file may hold it.
    """
    sections = {name: value for name, value in config.__dict__.items() if isinstance(value, Extensible)}
    values = config.plain()
    return values | {name: values[name] | _used_settings(section) for name, section in sections.items()}


def _used_settings(section: Extensible) -> dict[str, Any]:
    if isinstance(section, EvaluationConfig) and section.also:
        return {"also": list(section.also)} | _settings_used(section)
    return _settings_used(section)


def _settings_used(section: Extensible) -> dict[str, Any]:
    names = [name for registry, name in section.chosen() if registry is not MIXERS]
    names += [name for name in section.__pydantic_extra__ or {} if name in METRICS]
    settings = {name: section.settings_of(name) for name in names}
    found = {name: own.plain() if isinstance(own, Config) else own for name, own in settings.items()}
    return {name: own for name, own in found.items() if own}


def as_yaml(values: Mapping[str, Any]) -> str:
    """JSON values as YAML: a section a block, a list a line."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Lists of numbers are read at a glance on one line."""

    def line(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
        return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)

    Dumper.add_representer(list, line)
    return yaml.dump(dict(values), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
