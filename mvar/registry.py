"""Classes by name: ours by their path, loaded only where one is asked for, and those that a user's file registers."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from mvar.errors import UserError, one_of

T = TypeVar("T")


def loaded(path: str) -> Any:
    """What `module:name` stands for."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


class Registry(Generic[T]):
    """The classes of one kind.

    Args:
        field: what names one, in messages.
        paths: `module:class` by name. As text: a room may be named that lies above, or is slow to load.
    """

    def __init__(self, field: str, paths: Mapping[str, str]) -> None:
        self.field, self.paths = field, paths
        self.own: dict[str, type[T]] = {}  # classes that were registered themselves

    def names(self) -> list[str]:
        """Every name that there is."""
        return [*self.paths, *self.own]

    def check(self, name: str) -> str:
        """A name that there is; an unknown one is a `UserError` that lists them."""
        if name not in self.paths and name not in self.own:
            raise one_of(self.field, name, self.names())
        return name

    def register(self, name: str, kind: type[T]) -> None:
        """Give a class a name.

        Raises:
            UserError: another class has the name.
        """
        if name in self.paths or self.own.get(name, kind) is not kind:
            allowed = f"allowed: another name than {', '.join(self.names())}"
            raise UserError(f"{self.field}: {name!r} is taken; {allowed}")
        self.own[name] = kind

    def find(self, name: str) -> type[T]:
        """The class of a name; as `check`."""
        self.check(name)
        return self.own[name] if name in self.own else loaded(self.paths[name])
