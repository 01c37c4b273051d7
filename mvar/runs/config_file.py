"""`--config FILE`: a run in a file, or what of it differs from a preset; YAML, TOML, or the `config.json` of a run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mvar import layout, plugin_records, shipped
from mvar.config import SCHEMA_VERSION, RunConfig, override, stored_config
from mvar.config.field_files import SUFFIXES, read_fields
from mvar.config.identity import FIRST, subsection
from mvar.config.parsing import current_name
from mvar.errors import UserError, one_of
from mvar.presets import PRESETS

DEFAULT_PRESET = "digits"
ALLOWED = "a .yaml, .toml or .json file, or a run's directory"
WHOLE = FIRST["RunConfig"]  # sections that every stored config has


@dataclass(frozen=True)
class ConfigFile:
    """What a file asks for.

    Args:
        path: the file.
        preset: what it differs from.
        values: fields, dotted, that differ, with their values as text or None; `seed` and `sample.seed` among them.
        is_named: whether the file itself names the preset.
        whole: the config of a run, as it is stored; None of a file that says what differs from a preset.
    """

    path: Path
    preset: str
    values: Mapping[str, Any]
    is_named: bool
    whole: RunConfig | None = None

    @property
    def stem(self) -> str:
        """A name for its run: that of the file, of a run's `config.json` that of its directory."""
        return self.path.parent.name if self.path.name == layout.CONFIG else self.path.stem

    def preset_beside(self, given: str) -> str:
        """The preset that it differs from, where one may be given beside it.

        Raises:
            UserError: it names another one.
        """
        if given and self.is_named and given != self.preset:
            raise UserError(f"preset: {given!r}, and {self.path} says {self.preset!r}; allowed: one of them")
        return given or self.preset

    def beside(self, preset: str) -> "ConfigFile":
        """The same run of a whole config, as what differs from another preset."""
        assert self.whole
        found = differences(PRESETS[preset], self.whole)
        return replace(self, preset=preset, values={field: _text(value) for field, value in found.items()})

    def applied(self, preset: str) -> RunConfig:
        """The config that it stands for.

        Raises:
            UserError: an unknown field or a value that is not allowed; names file and field. A plug-in that is not
                loaded.
        """
        try:
            return override(PRESETS[preset], self.values)
        except UserError as error:
            if self.whole:
                plugin_records.check_loaded(self.whole, self.path.parent)
            raise UserError(f"{self.path}: {error}") from None


def read_config_file(given: str) -> ConfigFile:
    """Read a file that `--config` names.

    A file without `preset` differs from `digits`; of a whole config, which a run's `config.json` is, the preset is the
    one that it differs least from.

    Raises:
        UserError: no such file; it is damaged (says in which line) or holds no fields; a field that is unknown, given
            twice, or of a newer version. One line that names file and field.
    """
    path = shipped.user_path(given)
    path = path / layout.CONFIG if path.is_dir() else path
    if path.suffix not in SUFFIXES:
        raise UserError(f"config: {given!r} has no suffix of a config file; allowed: {ALLOWED}")
    document = read_fields(path, "config", ALLOWED, "train: {steps: 100}")
    if document.keys() >= WHOLE:
        return _whole(path, document)
    if document.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version is {document['schema_version']!r}; allowed: {SCHEMA_VERSION}")
    document = {name: value for name, value in document.items() if name != "schema_version"}
    is_named, preset = "preset" in document, document.pop("preset", DEFAULT_PRESET)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UserError(f"{path}: {one_of('preset', preset, PRESETS)}")
    return ConfigFile(path, preset, _dotted(path, document), is_named)


def _whole(path: Path, document: Mapping[str, Any]) -> ConfigFile:
    """Of a whole config what differs from the nearest preset."""
    try:
        config, unknown = stored_config(document)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if unknown:
        plugin_records.check_loaded(config, path.parent)  # whose settings they may be
        allowed = "fields that this version knows (mvar config fields lists them)"
        raise UserError(
            f"{path}: {', '.join(unknown)}: unknown here, of a newer version or a plug-in; allowed: {allowed}"
        )
    found = {name: differences(preset, config) for name, preset in PRESETS.items()}
    nearest = min(found, key=lambda name: len(found[name]))
    return ConfigFile(path, nearest, {field: _text(value) for field, value in found[nearest].items()}, False, config)


def _text(value: Any) -> Any:
    """A value as it would be typed after `--set`, so that it is read and checked in the same way."""
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def differences(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The fields, dotted, that differ from a base, as JSON values."""

    def walk(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
        for name, value in theirs.items():
            if isinstance(value, dict):
                yield from walk(ours.get(name) or {}, value, f"{where}{name}.")
            elif name not in ours or value != ours[name]:
                yield f"{where}{name}", value

    return dict(walk(base.model_dump(mode="json"), config.model_dump(mode="json"), ""))


def _dotted(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Sections in sections, or dotted names, as dotted names of today."""
    found: dict[str, Any] = {}

    def walk(values: Mapping[Any, Any], where: str) -> None:
        for key, value in values.items():
            if not isinstance(key, str):
                raise UserError(f"{path}: field {where}{key!r:.60} is no text; allowed: a name")
            name = current_name(RunConfig, f"{where}{key}")
            if isinstance(value, Mapping):
                walk(value, f"{where}{key}.")
            elif value is None and not where and key in RunConfig.model_fields and subsection(RunConfig, key):
                continue  # a section of which every line is commented out
            elif name in found:
                raise UserError(f"{path}: {name} is given twice; allowed: once")
            else:
                found[name] = _text(value)

    walk(document, "")
    return found
