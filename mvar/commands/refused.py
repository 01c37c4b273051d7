"""A command line that tyro refuses, as the one line of every other mistake: what it is, and what is allowed."""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any

import tyro

from mvar.commands.overview import name_of
from mvar.errors import UserError, one_of

HELP = ("-h", "--help")
UNRECOGNIZED = "Unrecognized options: "  # tyro's words for what is left over
# Sections whose fields --set takes, where it does not take all: by the class of the command.
SECTIONS = {
    "Sample": ("sample.",),
    "Attention": ("sample.",),
    "Data": ("data.",),
    "EvaluateTokenizer": ("data.", "evaluation.", "runtime."),
    "Probe": (),  # settings of the probe
}


def renamed(command: type, arguments: list[str]) -> list[str]:
    """The arguments with today's names of options (`former` of a command: those of before, which stay accepted)."""
    former: Mapping[str, str] = getattr(command, "former", {})
    found = (argument.partition("=") for argument in arguments)
    return ["".join((former.get(name, name), separator, value)) for name, separator, value in found]


def options_of(command: type) -> list[str]:
    """The options of a command, as they are typed."""
    return [_option(name) for name in _hints(command, positional=False)]


def refusal(command: type, arguments: list[str], complaint: str) -> UserError:
    """Why tyro has refused: its complaint, but for what it does not know."""
    options, positional = options_of(command), list(map(_option, _hints(command, positional=True)))
    for number, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        option = option.replace("_", "-")
        if not option.startswith("--") or option in (*options, *HELP):
            continue
        value = value or next(iter(arguments[number + 1 : number + 2]), "")
        if option in positional:
            alone = f"mvar {name_of(command)} {value or option[2:].upper()}"
            return UserError(f"option: {option!r} is unknown; allowed: {alone}; {', '.join(options)}")
        if "--set" in options and (field := _field(command, option, options)):
            return UserError(f"option: {option!r} is unknown; allowed: --set {field}={value or 'VALUE'}")
        return one_of("option", option, options)
    message = _unboxed(complaint)
    if message.startswith(UNRECOGNIZED):
        left = message.removeprefix(UNRECOGNIZED).partition(",")[0]
        return _left_over(left, arguments, options)
    return UserError(_plain(command, message))


def _left_over(left: str, arguments: list[str], options: list[str]) -> UserError:
    """What no option and no argument took: also the value of an option that has none."""
    for argument in arguments:
        option, separator, value = argument.partition("=")
        if separator and value == left and option in options:
            return UserError(f"option: {argument!r} has a value; allowed: {option}")
    return one_of("option" if left.startswith("-") else "argument", left, options)


def _field(command: type, option: str, options: list[str]) -> str:
    """The field of a config that an option is called like, `sample.cfg_scale` of `--cfg-scale`; empty: none."""
    from mvar.config.described import fields_of
    from mvar.presets import PRESETS

    if f"{option}s" in options:  # --seed: --seeds is meant
        return ""
    name = option[2:].replace("-", "_")
    names = [field.name for field in fields_of(next(iter(PRESETS.values())))]
    names = [field for field in names if field.startswith(SECTIONS.get(command.__name__, ""))]
    found = [field for field in names if field == name or field.endswith(f".{name}")]
    return min(found, key=lambda field: field.count("."), default="")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _hints(command: type, positional: bool) -> list[str]:
    """The fields of a command that are positional arguments, or those that are options; hidden ones are neither."""
    hints = typing.get_type_hints(command, include_extras=True)
    fields = dataclasses.fields(command)  # pyright: ignore[reportArgumentType]  commands are dataclasses
    names = [field.name for field in fields if not _has(hints[field.name], tyro.conf.Suppress)]
    return [name for name in names if _has(hints[name], tyro.conf.Positional) == positional]


def _has(hint: Any, mark: Any) -> bool:
    """Whether an annotation is marked, as `mark[...]` is."""
    return any(one in getattr(hint, "__metadata__", ()) for one in mark[str].__metadata__)


def _plain(command: type, message: str) -> str:
    """tyro's complaint; of arguments that are not given their names and texts."""
    missing = re.split(r" \(required\) ?", re.sub(r"^Missing from mvar [\w-]+: ", "", message))[:-1]
    if not missing:
        return message
    fields = dataclasses.fields(command)  # pyright: ignore[reportArgumentType]  commands are dataclasses
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING][-len(missing) :]
    texts = [re.sub(r"^(?:STR|\{[^}]*\}) ", "", text).rstrip(".") for text in missing]
    told = [
        f"{name}: not given; allowed: {text[0].lower()}{text[1:]}" for name, text in zip(needed, texts, strict=True)
    ]
    return "; ".join(told)


def _unboxed(text: str) -> str:
    lines = [re.sub(r"[╭╮╰╯│─]+|^ *-{4,} *$", " ", line).strip() for line in text.splitlines()[1:]]
    message = " ".join(line for line in lines if line)
    return re.split(r"\s*(?:For full helptext|Argument helptext)", message)[0]
