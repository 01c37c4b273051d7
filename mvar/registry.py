"""Classes by name: ours by their path, loaded only where one is asked for, and those that a user's file registers."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Generic, TypeVar

from mvar.errors import UserError, one_of

T = TypeVar("T")
NAME = re.compile("[a-z][a-z0-9_]{0,31}")  # names begin sections of a config, and those of directories
_owner: str = ""  # the plug-in that is being loaded
_files: dict[str, str] = {}  # of plug-ins, by name


def loaded(path: str) -> Any:
    """What `module:name` stands for."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@contextmanager
def owned_by(plugin: str, file: str) -> Iterator[None]:
    """What is registered inside the block belongs to a plug-in of that name and file."""
    global _owner
    before, _owner, _files[plugin] = _owner, plugin, file
    try:
        yield
    finally:
        _owner = before


class Registry(Generic[T]):
    """The classes of one kind.

    Args:
        field: what names one, in messages.
        paths: `module:class` by name. As text: a room may be named that lies above, or is slow to load.
        without_settings: those of `paths` whose class has none, so that nobody waits for torch to learn that.
    """

    def __init__(self, field: str, paths: Mapping[str, str], without_settings: Collection[str] = ()) -> None:
        self.field, self.paths, self.without_settings = field, paths, frozenset(without_settings)
        self.own: dict[str, type[T]] = {}  # classes that were registered themselves
        self.owners: dict[str, str] = {}  # the plug-in of each of those, where one registered it

    def __contains__(self, name: object) -> bool:
        return name in self.paths or name in self.own

    def names(self) -> list[str]:
        """Every name that there is."""
        return [*self.paths, *self.own]

    def check(self, name: str) -> str:
        """A name that there is; an unknown one is a `UserError` that lists them."""
        if name not in self:
            raise one_of(self.field, name, self.names())
        return name

    def register(self, name: str, kind: type[T]) -> None:
        """Give a class a name.

        Raises:
            UserError: another class has the name, or it is no name.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(
                f"{self.field}: {name!r:.60} is no name; allowed: up to 32 small letters, digits and _, a letter first"
            )
        if name in self.paths or self.own.get(name, kind) is not kind:
            owner = self.owners.get(name)
            by = f" by {owner} ({_files[owner]})" if owner else ""
            allowed = f"allowed: another name than {', '.join(self.names())}"
            raise UserError(f"{self.field}: {name!r} is taken{by}; {allowed}")
        self.own[name] = kind
        if _owner:
            self.owners[name] = _owner

    def find(self, name: str) -> type[T]:
        """The class of a name; as `check`."""
        self.check(name)
        return self.own[name] if name in self.own else loaded(self.paths[name])

    def settings(self, name: str) -> type[Any] | None:
        """The class of its settings, a section of a config (`mvar.config.Config`); None where it has none.

        Raises:
            UserError: as `check`.
        """
        return None if name in self.without_settings else getattr(self.find(name), "Settings", None)
