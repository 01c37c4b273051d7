"""Which data sources there are: names that `data.name` may have, and the classes behind them. Text only, no torch."""

import re
from typing import Any

from mvar.errors import UserError
from mvar.registry import Registry

# A new data source is one file and one line here, see mvar.data.sources.contract.
SOURCES: Registry[Any] = Registry(
    "data.name",
    {"digits": "mvar.data.sources.digits:Digits", "imagefolder": "mvar.data.sources.imagefolder:ImageFolder"},
)


def register(name: str, kind: type) -> None:
    """Give a user's own data source a name for `data.name`; it is part of the ids of runs.

    Raises:
        UserError: another class has the name, or it would not do in a directory's name.
    """
    if not re.fullmatch("[a-z][a-z0-9_]{0,31}", name):
        raise UserError(f"data.name: {name!r:.60} is no name; allowed: up to 32 small letters, digits and _")
    SOURCES.register(name, kind)
