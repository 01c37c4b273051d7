"""Sections of a config that take settings of what is chosen by name: a user's own source has `data.NAME`, and so on.

The schema stays closed: a section of that name is there where a class of that name is registered and has `Settings`,
and its values are validated as all others are.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from mvar.config.allowed import allowed_at
from mvar.errors import UserError, one_of, quoted
from mvar.registry import NAME, Registry


class Config(BaseModel):
    """Base of every section: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """The section as JSON values in the one spelling that ids and documents rest on."""
        values = self.model_dump(mode="json")
        inner = {name: value for name, value in self.__dict__.items() if isinstance(value, Config)}
        return values | {name: section.plain() for name, section in inner.items()}


class Extensible(Config):
    """A section that holds settings of registered classes, each in a section of its name.

    They count, in ids and documents, only where the section uses that name, and only what differs from its default.
    """

    model_config = ConfigDict(extra="allow")
    SECTION: ClassVar[str]  # its own name in the whole config
    REGISTRIES: ClassVar[tuple[Registry[Any], ...]]  # whose names may have a section in it
    CHOICES: ClassVar[Mapping[str, Registry[Any]]] = MappingProxyType({})  # fields that hold a name, and of which kind

    @model_validator(mode="after")
    def _check_settings(self, info: ValidationInfo) -> Self:
        for field, registry in self.CHOICES.items():
            check_name(registry, getattr(self, field), info)
        given = self.__pydantic_extra__ or {}
        for name, values in list(given.items()):
            kind = self.settings_class(name)
            if kind is not None:
                given[name] = validated(kind, values, f"{self.SECTION}.{name}", info.context)
            elif not (is_lenient(info) and isinstance(values, Mapping)):
                raise ValueError(f"{self.SECTION}.{name}: {quoted(values)}: Extra inputs are not permitted")
        return self

    @classmethod
    def settings_class(cls, name: str) -> type[Config] | None:
        """The class of the settings of a registered name; None where there is none, or it has none."""
        for registry in cls.REGISTRIES:
            if name in registry and name not in cls.model_fields:
                return registry.settings(name)
        return None

    def given_settings(self, name: str) -> Any:
        """The settings of a registered name that the section holds; None where nobody has set any."""
        return (self.__pydantic_extra__ or {}).get(name)

    def settings_of(self, name: str) -> Any:
        """The settings of a registered name: those that are given, else its defaults; None where it has none."""
        given = self.given_settings(name)
        if given is not None:
            return given
        kind = self.settings_class(name)
        return kind() if kind else None

    def chosen(self) -> list[tuple[Registry[Any], str]]:
        """What the section uses by name, and of which kind it is."""
        return [(registry, getattr(self, field)) for field, registry in self.CHOICES.items()]

    def plain(self) -> dict[str, Any]:
        """As `Config.plain`; of settings those that are used and differ from their defaults."""
        values, used = super().plain(), {name for _, name in self.chosen()}
        for name, given in (self.__pydantic_extra__ or {}).items():
            del values[name]
            if name in used:
                kept = given.model_dump(mode="json", exclude_defaults=True) if isinstance(given, Config) else given
                values |= {name: kept} if kept else {}
        return values


def is_lenient(info: ValidationInfo) -> bool:
    """Whether a config is read that was checked when it was stored: what it names may belong to a missing plug-in."""
    return bool((info.context or {}).get("lenient"))


def check_name(registry: Registry[Any], name: str, info: ValidationInfo) -> str:
    """A name that is registered; of what is stored, one that could be.

    Raises:
        UserError: an unknown name; lists those that there are.
    """
    return name if is_lenient(info) and NAME.fullmatch(name) else registry.check(name)


def validated(kind: type[Config], values: Any, where: str, context: Any) -> Config:
    """Settings of one class; what is wrong in them is told by the name of the field in the whole config."""
    if isinstance(values, kind):
        return values
    try:
        return kind.model_validate(values, context=context)
    except ValidationError as error:
        raise ValueError(explain_all(error, kind, where)) from None


def explain_all(error: ValidationError, kind: type[BaseModel], where: str = "") -> str:
    """What is wrong with a config, in one line: fields, values, and what is allowed.

    Args:
        error: pydantic's.
        kind: the section that was validated.
        where: its name in the whole config.
    """
    return "; ".join(dict.fromkeys(_explain(one, kind, where) for one in error.errors()))


def _explain(error: Any, kind: type[BaseModel], section: str) -> str:
    where = ".".join(str(part) for part in (*filter(None, [section]), *error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message if ":" in message or not where else f"{where}: {message}"
    told = allowed_at(kind, error["loc"])
    return f"{where}: {quoted(error['input'])}: {message}" + (f"; allowed: {told}" if told else "")


def no_settings(kind: type[Extensible], name: str, fields: Iterable[str]) -> UserError:
    """The error for a section that there is not."""
    for registry in kind.REGISTRIES:
        if name in registry:
            return UserError(f"{kind.SECTION}.{name}: {registry.field} {name!r} has no settings")
    with_settings = [n for r in kind.REGISTRIES for n in r.names() if kind.settings_class(n)]
    return one_of(f"field {kind.SECTION}", name, [*fields, *with_settings])
