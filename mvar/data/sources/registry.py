"""Data sources by name; the names themselves are in mvar.config.sources, where configs are checked."""

from importlib import import_module

from mvar.config.sources import OWN, REGISTRY, check_name
from mvar.data.sources.contract import DataSource


def find(name: str) -> DataSource:
    """The data source of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    if check_name(name) in OWN:
        return OWN[name]()
    module, _, kind = REGISTRY[name].partition(":")
    return getattr(import_module(module), kind)()
