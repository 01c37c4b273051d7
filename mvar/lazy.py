"""Public names of a package that are loaded when they are first used: importing the package takes no time."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(
    package: str, homes: Mapping[str, tuple[str, ...]], at_home: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its name.
        homes: public names by the module (or package) that has them.
        at_home: what a name is called there, where that is another one.
    """
    where = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        own = (at_home or {}).get(name, name)
        home = None if where[name] == package else import_module(where[name])  # None: a module of the package itself
        value = getattr(home, own) if hasattr(home, own) else import_module(f"{where[name]}.{own}")
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted([*vars(sys.modules[package]), *where]), sorted(where)
