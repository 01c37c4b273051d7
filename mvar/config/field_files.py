"""TOML, YAML and JSON files of fields, as people, programs and accidents write them: bounded time and memory, one line
for every mistake."""

import json
import stat
import tomllib
from itertools import accumulate
from pathlib import Path
from typing import Any

from mvar.errors import UserError

SUFFIXES = (".toml", ".yaml", ".yml", ".json")
MAX_BYTES = 1 << 16  # of a file: the parsers' time grows with its square
MAX_LINE = 4096  # characters
MAX_OPEN = 50  # brackets
MAX_SHOWN = 60  # characters of a value in a message


def read_fields(path: Path, what: str, allowed: str, example: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The fields of a file, by its suffix.

    Args:
        path: of a file with one of `SUFFIXES`.
        what: the option that names it, in messages.
        allowed: what would be a file, in messages.
        example: a field, in messages.
        max_bytes: of the file.

    Raises:
        UserError: it cannot be read, is too large, no UTF-8, damaged (says in which line), or holds no fields.
    """
    kind = path.suffix[1:].upper()
    try:
        text = _bytes(path, max_bytes).decode("utf-8-sig")
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{what}: {str(path)[:300]} cannot be read ({why}); allowed: {allowed}") from None
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise UserError(f"{what}: {path} is not UTF-8 ({byte}); allowed: a {kind} file in UTF-8") from None
    _check_shape(path, text, what)
    try:
        values = _parsed(path, text)
    except RecursionError:
        raise UserError(f"{what}: {path} is not valid {kind}: values in values in values; allowed: fields") from None
    except Exception as error:  # of damaged values PyYAML's constructors fail each in its own way
        mark = getattr(error, "problem_mark", None)  # PyYAML's, whose own text spreads over lines
        text = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error)
        said = " ".join(text.split())[:300]
        raise UserError(f"{what}: {path} is not valid {kind} ({said or type(error).__name__})") from None
    if not isinstance(values, dict):
        raise UserError(f"{what}: {path} holds no fields; allowed: FIELD = VALUE, e.g. {example}")
    return values


def _parsed(path: Path, text: str) -> Any:
    if path.suffix == ".toml":
        return tomllib.loads(text)
    return json.loads(text) if path.suffix == ".json" else _yaml(text)


def _bytes(path: Path, max_bytes: int) -> bytes:
    if "\0" in str(path):
        raise OSError("a NUL in its name")
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device never ends
        raise OSError("no regular file")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(f"more than {max_bytes // 1024} kB")
    return data


def _check_shape(path: Path, text: str, what: str) -> None:
    """Refuse what the parsers would spend minutes or gigabytes on before they refuse it."""
    longest = max(map(len, text.splitlines()), default=0)
    if longest > MAX_LINE and path.suffix != ".json":
        raise UserError(f"{what}: {path} has a line of {longest} characters; allowed: up to {MAX_LINE}")
    depth = max(accumulate((c in "[{") - (c in "]}") for c in text), default=0)
    if depth > MAX_OPEN:
        raise UserError(f"{what}: {path} has {depth} brackets open at once; allowed: up to {MAX_OPEN}")


def _yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Without aliases: nine lines of them make a billion values, and two a value that holds itself."""

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                name = self.peek_event().anchor
                raise yaml.YAMLError(f"alias *{cited(name)[1:-1]}; allowed: the value itself, written out")
            return super().compose_node(parent, index)

    return yaml.load(text, Loader)  # Loader is a safe one


def cited(value: Any) -> str:
    """A value in a message: cut, and never an error of its own."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a number of thousands of digits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
