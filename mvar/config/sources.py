"""Which data sources there are: names that `data.name` may have, and the classes behind them. Text only, no torch."""

import re

from mvar.errors import UserError, one_of

# A new data source is one file and one line here: name -> "module:Class", see mvar.data.sources.contract.
REGISTRY: dict[str, str] = {
    "digits": "mvar.data.sources.digits:Digits",
    "imagefolder": "mvar.data.sources.imagefolder:ImageFolder",
}
OWN: dict[str, type] = {}  # classes that were registered themselves


def names() -> list[str]:
    """Every name that there is."""
    return [*REGISTRY, *OWN]


def check_name(name: str) -> str:
    """A name that there is; an unknown one is a `UserError` that lists them."""
    if name not in REGISTRY and name not in OWN:
        raise one_of("data.name", name, names())
    return name


def register(name: str, kind: type) -> None:
    """Give a user's own data source a name for `data.name`; it is part of the ids of runs.

    Raises:
        UserError: another class has the name, or it would not do in a directory's name.
    """
    if not re.fullmatch("[a-z][a-z0-9_]{0,31}", name):
        raise UserError(f"data.name: {name!r:.60} is no name; allowed: up to 32 small letters, digits and _")
    if name in REGISTRY or OWN.get(name, kind) is not kind:
        raise UserError(f"data.name: {name!r} is taken; allowed: another name than {', '.join(names())}")
    OWN[name] = kind
