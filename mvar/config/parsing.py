"""Texts and documents in: `--set` values, configs as JSON values, and stored configs of any version.

Names that have changed stay accepted (`RENAMED`), in `--set`, in configs and in what is stored.
"""

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mvar.config.evaluation_sections import SampleConfig
from mvar.config.extensible import Config, Extensible, explain_all, no_settings
from mvar.config.identity import FIRST, PATHS, REPINNED, SPLITS, pinned, section_name, subsection
from mvar.config.schema import SCHEMA_VERSION, RunConfig
from mvar.errors import UserError, one_of, quoted
from mvar.escaping import one_line

C = TypeVar("C", bound=Config)

# Dotted names of earlier versions -> today's. Of a run's sampling the short names are accepted too: cfg_scale=3.
RENAMED: dict[str, str] = dict.fromkeys(SPLITS, "runtime.accumulate")
DERIVED = ("model.replace", "model.replacement")  # no fields: they change `model.pattern`
MAX_TEXT = 10_000  # characters of a value on the command line
NO_VALUE = ("null", "none", "None")
# Below these no sum or product of sizes, steps and seeds overflows on the way.
MAX_INT, MAX_FLOAT = 2**63 - 1, 1e100


def current_name(kind: type[Config], name: str) -> str:
    """Today's dotted name of a field, given any that was ever allowed."""
    name = RENAMED.get(name, name)
    if kind is RunConfig and "." not in name and name in SampleConfig.model_fields and name not in kind.model_fields:
        return f"sample.{name}"
    return name.removeprefix("sample.") if kind is SampleConfig else name


def override(config: C, values: Mapping[str, Any]) -> C:
    """A copy with dotted fields replaced, e.g. `{"model.depth": 12}`, validated anew.

    `model.replace` and `model.replacement` are accepted too and change the pattern. Text is read as the field's type
    wants it: `"0.5"`, `"true"`, `"1,2"` and `"[1,2]"` from a command line mean what they say, and a folder may be
    called `2024`.

    Raises:
        UserError: an unknown field, or a value that is not allowed.
    """
    tree = config.model_dump(mode="json")
    for name, value in values.items():
        dotted = current_name(type(config), name)
        *parents, leaf = dotted.split(".")
        node, kind = tree, type(config)
        for depth, part in enumerate(parents):
            if issubclass(kind, Extensible) and part not in kind.model_fields:
                node, kind = _settings(node, kind, part)
                continue
            if not isinstance(node.get(part), dict):
                whole = ".".join(parents[: depth + 1])
                if part in node:
                    raise UserError(f"{name[:200]}: {whole} is a field, no section; allowed: {whole}=VALUE")
                raise one_of(f"field {one_line(whole[:200])}", part, node)
            node, kind = node[part], subsection(kind, part) or kind
        if issubclass(kind, Extensible) and leaf not in node and kind.settings_class(leaf):
            _settings(node, kind, leaf)  # a section, of which a field is wanted
        if leaf not in node and dotted not in DERIVED:
            raise one_of(f"field {one_line(name[:200])}", leaf, node)
        if isinstance(node.get(leaf), dict):
            example = next(iter(node[leaf]), "NAME")
            raise UserError(f"{name}: is a section; allowed: its fields, e.g. {name}.{example}=VALUE")
        node[leaf] = _read(dotted, value, str if dotted in DERIVED else kind.model_fields[leaf].annotation)
    return from_dict(type(config), tree)


def _settings(node: dict[str, Any], kind: type[Extensible], name: str) -> tuple[dict[str, Any], type[Config]]:
    """The settings of a registered name in a section's values, with their defaults where they are not there yet."""
    settings = kind.settings_class(name)
    if settings is None:
        raise no_settings(kind, name, node)
    return node.setdefault(name, settings().model_dump(mode="json")), settings


def _read(name: str, value: Any, annotation: Any) -> Any:
    """A value for a field of this type: text as JSON where the field takes no text itself."""
    if name == "model.replace" and isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if not isinstance(value, str):
        return value
    _check_text(name, value)
    kinds = set(_kinds(annotation))
    if value in NO_VALUE and {type(None), tuple} & kinds:
        return None if type(None) in kinds else []
    if name == "model.replace":
        return "".join(_inside(value).split())
    if tuple in kinds and str in get_args(annotation):
        return [] if value in NO_VALUE else _listed(value)
    if not value.strip():
        none = ", or none" if type(None) in kinds else ""
        raise UserError(f"{name}: has no value; allowed: {name}=VALUE{none}")
    if str in kinds:
        return value
    if tuple in kinds:
        parts = [part.strip() for part in _inside(value).split(",")]
        return parts if {str, float} & set(get_args(annotation)) else whole_numbers(name, value)
    return _read_json(name, value, kinds)


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # configs are kept as JSON, which is UTF-8
        raise UserError(f"{name}: {quoted(text)} is not UTF-8; allowed: a name that is, e.g. of a link to it") from None
    if len(text) > MAX_TEXT:
        raise UserError(f"{name}: a text of {len(text):,} characters; allowed: at most {MAX_TEXT:,}")


def _read_json(name: str, value: str, kinds: set[Any]) -> Any:
    """A text that is a number or a truth value; any other as it is: the field itself complains of it."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if isinstance(found, bool) and bool not in kinds:
        return value  # true is no number of steps
    if isinstance(found, int | float) and abs(found) > (MAX_INT if isinstance(found, int) else MAX_FLOAT):
        largest = f"{MAX_INT:,}" if int in kinds else f"{MAX_FLOAT:g}"
        raise UserError(f"{name}: {value.strip()[:100]} is too large; allowed: at most {largest}")
    return found


def _inside(text: str) -> str:
    """What stands in the brackets of a list, if it has any, without a comma at its end."""
    text = text.strip()
    if text[:1] + text[-1:] in ("[]", "()"):
        text = text[1:-1].strip()
    return text.removesuffix(",")


def _listed(text: str) -> list[str]:
    """A list of names as people type it: `a,b`, `[a, b]`, or nothing."""
    return [part.strip().strip("\"'") for part in _inside(text).split(",") if part.strip()]


def whole_numbers(name: str, text: str) -> list[int]:
    """A list of numbers as people type it: `1,2,3`, `1, 2, 3`, `[1, 2, 3]` or `(1, 2, 3)`.

    Raises:
        UserError: another text, `1-2-3` say; names the field.
    """
    parts = [part.strip() for part in _inside(text).split(",")]
    if not all(re.fullmatch(r"[+-]?[0-9]{1,18}", part) for part in parts):
        raise UserError(f"{name}: {quoted(text)} is no list of whole numbers; allowed: e.g. {name}=1,2,3,4")
    return [int(part) for part in parts]


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types that an annotation allows: of `Literal["a"]` str, of `tuple[int, ...]` tuple."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from map(type, get_args(annotation))
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield origin or annotation


def from_dict(kind: type[C], values: Mapping[str, Any], lenient: bool = False) -> C:
    """Build and validate a config; a mistake is a one-line `UserError`: field, value, what is allowed.

    Args:
        kind: the section, or the whole config.
        values: JSON values.
        lenient: of what was checked when it was stored: names of mixers, sources and the like may be those of a
            plug-in that is not loaded. Who computes asks `mvar.plugin_records.check`.
    """
    try:
        return kind.model_validate(values, context={"stored": True, "lenient": lenient})
    except ValidationError as error:
        raise UserError(explain_all(error, kind)) from None


class Stored(NamedTuple):
    """A config as it is stored: read by today's schema, and what that does not know."""

    config: RunConfig
    unknown: tuple[str, ...]  # dotted names of fields, of a newer version


def stored_config(document: Any) -> Stored:
    """A run's config from its JSON document, of this version, an earlier or a newer one.

    A field that was added after the document was written has the default that it had when it was added. A field of a
    newer version is left out and named.

    Raises:
        UserError: a field of the first version is missing (a damaged document), or a value is not allowed.
    """
    if not isinstance(document, Mapping):
        raise UserError(f"a config is a JSON object, this is {type(document).__name__}; allowed: what `mvar run` wrote")
    if (version := document.get("schema_version")) != SCHEMA_VERSION:
        raise UserError(f"schema_version is {version!r}; allowed: {SCHEMA_VERSION}")
    missing: list[str] = []
    unknown: list[str] = []
    values = _known(RunConfig, document, "", missing, unknown)
    wrong = [name for name in ("runtime", "train") if name in values and not isinstance(values[name], Mapping)]
    if wrong:
        raise UserError(f"{wrong[0]} is {values[wrong[0]]!r:.200}; allowed: a JSON object, as `mvar run` writes it")
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(f"{some} is not there; allowed: a whole config, as `mvar run` writes it")
    if "accumulate" not in values["runtime"]:  # the first version had it in both recipes
        split = document["train"].get("accumulate")
        values["runtime"]["accumulate"] = split if isinstance(split, int) else 1
    return Stored(from_dict(RunConfig, values, lenient=True), tuple(unknown))


def _known(
    kind: type[BaseModel], values: Mapping[str, Any], where: str, missing: list[str], unknown: list[str]
) -> dict[str, Any]:
    """The values that a section knows; later fields that are not there get their pinned default."""
    name, first = section_name(kind), FIRST.get(section_name(kind), frozenset())
    found: dict[str, Any] = {}
    for field, value in values.items():
        if field not in kind.model_fields and issubclass(kind, Extensible) and _is_settings(kind, field, value, values):
            found[field] = value
        elif field not in kind.model_fields:
            unknown.append(f"{where}{field}")
        elif (inner := subsection(kind, field)) and isinstance(value, Mapping):
            found[field] = _known(inner, value, f"{where}{field}.", missing, unknown)
        else:
            found[field] = value
    missing += [f"{where}{field}" for field in kind.model_fields if field in first and field not in values]
    for (section, field), default in REPINNED.items():
        if section == name and field not in values:
            found[field] = default
    if "version" in kind.model_fields and "version" not in values:
        found["version"] = pinned(kind, "version")
    return found


def _is_settings(kind: type[Extensible], field: str, value: Any, values: Mapping[str, Any]) -> bool:
    """Whether a field is no field of a newer version but settings of what has that name, or is used by it."""
    is_used = field in [values.get(choice) for choice in kind.CHOICES]
    return isinstance(value, Mapping) and (is_used or kind.settings_class(field) is not None)


__all__ = [
    "DERIVED",
    "PATHS",
    "RENAMED",
    "Stored",
    "current_name",
    "from_dict",
    "override",
    "stored_config",
    "whole_numbers",
]


def parse_overrides(settings: Iterable[str]) -> dict[str, str]:
    """`FIELD=VALUE` texts as a mapping; of a field that is given twice, under any of its names, the last counts.

    Raises:
        UserError: a text without `=`.
    """
    overrides: dict[str, str] = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        name = name.strip()
        if not separator or not name:
            raise UserError(f"set: {quoted(setting)} is not FIELD=VALUE; allowed: e.g. train.steps=100")
        same = [other for other in overrides if current_name(RunConfig, other) == current_name(RunConfig, name)]
        for other in same:
            del overrides[other]
        overrides[name] = value
    return overrides
