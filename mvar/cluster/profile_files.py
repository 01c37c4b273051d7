"""Profiles as people, programs and accidents write them: bounded time and memory, one line for every mistake."""

import os
import re
import stat
from pathlib import Path
from typing import Any

from mvar.config.field_files import cited, read_fields
from mvar.errors import UserError

MAX_BYTES = 1 << 14  # of a file: the parsers' time grows with its square
MAX_DEPTH = 3  # of values in values; a profile has 2
MAX_NAME, MAX_TEXT = 200, 4096  # characters
TEXTS = ("partition", "account", "qos", "constraint")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line breaks of all kinds, NUL, no characters
OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read(path: Path) -> dict[str, Any]:
    """The fields of a TOML or YAML file.

    Raises:
        UserError: it cannot be read, is too large, no UTF-8, damaged, or holds no fields.
    """
    return read_fields(path, "cluster", "a readable file, or the name of a built-in profile", "partition", MAX_BYTES)


def check_owner(path: Path, what: str, remedy: str) -> None:
    """Refuse what others may have changed.

    Raises:
        UserError: another owner than this user or root, or writable by the group or by all; names the path.
    """
    found = path.lstat()
    if found.st_uid not in (os.geteuid(), 0):
        raise UserError(f"{what}: {path} belongs to user {found.st_uid}; allowed: your own or root's; {remedy}")
    if not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o022:
        mode = stat.S_IMODE(found.st_mode)
        raise UserError(f"{what}: {path} has mode {mode:04o}, others may write it; allowed: chmod go-w; {remedy}")


def check_values(values: Any) -> None:
    """Check the plain values of a profile, before they are converted to its fields' types.

    A number, boolean or date is not taken for a text: what was written (0123, 1_000, yes, 1e3) cannot be known.

    Raises:
        ValueError: one line: field, value, what is allowed.
    """
    _check_plain("", values, 0)
    for name, value in values.items():
        if name in TEXTS and value is not None:
            _check_text(name, value)
            if not value:
                raise ValueError(f"{name}: {value!r} is empty; allowed: a name, or leave it out")
        elif name == "setup" and isinstance(value, list | tuple):
            for number, line in enumerate(value):
                _check_text(f"setup.{number}", line)
        elif name == "env" and isinstance(value, dict):
            _check_variables(value)
        elif name == "sbatch" and isinstance(value, dict):
            _check_options(value)
        elif isinstance(value, bool):
            raise ValueError(f"{name}: {value} is a boolean; allowed: a number, or what the field holds")


def _check_variables(env: dict[str, Any]) -> None:
    for variable, text in env.items():
        if not VARIABLE.fullmatch(variable):
            raise ValueError(f"env: {cited(variable)} is no name of a variable; allowed: letters, digits and _")
        _check_text(f"env.{variable}", text)


def _check_options(sbatch: dict[str, Any]) -> None:
    for option in sbatch:
        if not OPTION.fullmatch(option):
            raise ValueError(f"sbatch: {cited(option)} is no option of sbatch; allowed: letters, digits and -")


def _check_text(where: str, value: Any) -> None:
    if not isinstance(value, str):
        kind = {bool: "a boolean", int: "a number", float: "a number"}.get(type(value), "no text")
        raise ValueError(f'{where}: {cited(value)} is {kind}; allowed: a text, in quotes: "{value}"')


def _check_plain(where: str, value: Any, depth: int) -> None:
    """Of bounded size and depth, and nothing in it that ends a line."""
    if isinstance(value, str):
        _check_line(where, value)
    elif isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise ValueError(f"{where}: {cited(value)} is out of range; allowed: less than 2**63")
    elif isinstance(value, dict | list | tuple):
        if depth > MAX_DEPTH - 1:
            raise ValueError(f"{where}: values in values; allowed: a value, a list or a table of values")
        named = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in named:
            if isinstance(value, dict):
                _check_name(where, name)
            _check_plain(f"{where}.{name}" if where else str(name), inner, depth + 1)
    elif value is not None and not isinstance(value, float):
        raise ValueError(f'{where}: {cited(value)} is a {type(value).__name__}; allowed: a text, in quotes: "{value}"')


def _check_line(where: str, text: str) -> None:
    found = CONTROL.search(text.replace("\t", "") if where.startswith(("env.", "setup")) else text)
    if found:
        what = f"the control character {found[0]!r}"
        raise ValueError(f"{where}: {cited(text)} has {what}; allowed: text on one line")
    if len(text) > MAX_TEXT:
        raise ValueError(f"{where}: {cited(text)} has {len(text)} characters; allowed: up to {MAX_TEXT}")


def _check_name(where: str, name: Any) -> None:
    inside = f" in {where}" if where else ""
    if not isinstance(name, str):
        raise ValueError(f"field {cited(name)}{inside}: no text; allowed: a name, in quotes if it is a number")
    if CONTROL.search(name) or len(name) > MAX_NAME:
        raise ValueError(f"field {cited(name)}{inside}: has a control character or is too long; allowed: a name")
