"""What a field of a config may be, in words, made of its type and limits."""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

NUMBERS = {"integer": ("whole number", "whole numbers"), "number": ("number", "numbers")}
ANYTHING = "any value"


def typed(value: Any) -> str:
    """A JSON value as it is typed after `--set NAME=`."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return ",".join(map(typed, value)) or typed(None) if isinstance(value, list | tuple) else str(value)


def allowed(kind: type[BaseModel], field: str) -> str:
    """What one field of a section may be: `whole number, 1 or more`."""
    schema, definitions = _schema(kind)
    return _told(schema[field], definitions) if field in schema else ANYTHING


def allowed_at(kind: type[BaseModel], place: Sequence[int | str]) -> str:
    """The same of a field inside sections, by pydantic's place of an error; empty where there is nothing to say."""
    for part in place:
        field = kind.model_fields.get(str(part))
        if field is None:
            return ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            kind = field.annotation
            continue
        told = allowed(kind, str(part))
        return "" if told == ANYTHING else told
    return ""


class _Schema(GenerateJsonSchema):
    """JSON schema in which a type that has none may be anything."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


@cache
def _schema(kind: type[BaseModel]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The JSON schema of a section's fields, and the definitions that it refers to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of defaults that are no JSON
        schema = kind.model_json_schema(by_alias=False, schema_generator=_Schema)
    return schema.get("properties", {}), schema.get("$defs", {})


def _told(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return _told(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        return ", ".join(map(typed, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        return ", or ".join(_told(one, definitions) for one in schema["anyOf"])
    kind = schema.get("type")
    if kind in NUMBERS:
        return ", ".join(filter(None, [NUMBERS[kind][0], _bounds(schema)]))
    if kind == "array":
        return _list(schema, definitions)
    if kind == "string":
        return f"text like {schema['pattern']}" if "pattern" in schema else "text"
    return {"boolean": "true, false", "null": "none"}.get(str(kind), ANYTHING)


def _list(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    least, most, parts = schema.get("minItems"), schema.get("maxItems"), schema.get("prefixItems", [])
    items = schema.get("items") or (parts[0] if parts and parts.count(parts[0]) == len(parts) else {})
    number = f", {'' if least == most else 'at least '}{least} of them" if least else ""
    if items.get("type") in NUMBERS:
        bounds = _bounds(items)
        each = f", each {bounds}" if bounds else ""
        return f"list of {NUMBERS[items['type']][1]}{each}{number}"
    return f"list, each: {_told(items, definitions)}{number}"


def _bounds(schema: Mapping[str, Any]) -> str:
    """Limits of a number: `0 or more, below 1`."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if schema.get("type") == "integer":  # above 0 is 1 or more
        low, above = (above + 1, None) if above is not None else (low, None)
        high, below = (below - 1, None) if below is not None else (high, None)
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    limits = (("{} or more", low), ("above {}", above), ("at most {}", high), ("below {}", below))
    return ", ".join(text.format(_number(limit)) for text, limit in limits if limit is not None)


def _number(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
