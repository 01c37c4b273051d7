"""Settings of a mixer in a pattern's text: `markov:2` read on a base, and written in one form. No mixer is loaded here.

The first field stands without its name. What equals the base is left out, so that one mixer has one text on it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from mvar.config.extensible import Config, explain_all
from mvar.errors import UserError, one_of, quoted
from mvar.pattern import WORD, parse_mixer

NONE = ("none", "null", "None")


def read_settings(text: str, kind: type[Config] | None, base: Config | None, pattern: str = "") -> Config | None:
    """The settings that a mixer's text asks for.

    Args:
        text: `markov:2`.
        kind: the class of the mixer's settings; None: it takes none.
        base: what the text changes.
        pattern: the pattern that it stands in, for messages.

    Raises:
        UserError: a field that the mixer has not, or a value that is not allowed.
    """
    name, given = parse_mixer(text)
    if not given:
        return base
    where = f"model.pattern: {quoted(pattern or text)}"
    if kind is None or base is None:
        raise UserError(f"{where}: {name} has no settings; allowed: {name}")
    values = base.model_dump(mode="json")
    for field, value in _named(name, given, kind, where).items():
        values[field] = _value(f"{where}: {name}", kind, values, field, value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {explain_all(error, kind, name)}") from None


def _named(name: str, given: Mapping[str, str], kind: type[Config], where: str) -> dict[str, str]:
    """The texts by the names of their fields."""
    fields = list(kind.model_fields)
    found: dict[str, str] = {}
    for field, value in given.items():
        field = field or fields[0]
        if field not in fields:
            raise one_of(f"{where}: field of {name}", field, fields)
        if field in found:
            raise UserError(f"{where}: {name}.{field} is given twice; allowed: once")
        found[field] = value
    return found


def _value(where: str, kind: type[Config], values: Mapping[str, Any], field: str, text: str) -> Any:
    """A field's value from its text, as the field wants it; what only several fields together decide is left for later.

    Raises:
        UserError: a value that is not allowed.
    """
    told = ""
    for value in _readings(text):
        try:
            kind.model_validate({**values, field: value})
        except ValidationError as error:
            if any(one["loc"][:1] == (field,) for one in error.errors()):
                told = told or explain_all(error, kind, where)
                continue
        return value
    raise UserError(told)


def _readings(text: str) -> Iterator[Any]:
    """What a text may stand for: itself, none, or a number that is one of a list of numbers."""
    yield text
    if text in NONE:
        yield None
    for number in (int, float):
        try:
            yield number(text)
        except ValueError:
            continue


def write_settings(name: str, settings: Config | None, base: Config | None) -> str:
    """The text of a mixer with these settings, on a base: what equals it is left out.

    Raises:
        UserError: a value that a pattern cannot hold.
    """
    if settings is None or base is None:
        return name
    values, usual = settings.model_dump(mode="json"), base.model_dump(mode="json")
    parts = []
    for number, (field, value) in enumerate(values.items()):
        if value != usual[field]:
            text = _text(name, field, value)
            parts.append(text if number == 0 else f"{field}={text}")
    return f"{name}:{','.join(parts)}" if parts else name


def _text(name: str, field: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    text = str(value).replace("e+", "e") if isinstance(value, int | float) else value
    if not isinstance(text, str) or not WORD.fullmatch(text):
        raise UserError(
            f"model.{name}.{field}: {quoted(value)} cannot be written in a pattern; allowed: numbers, true, false, "
            "none, and words of letters, digits, '.', '-' and '_'"
        )
    return text
