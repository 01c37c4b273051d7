"""Data sources by name; the names themselves are in mvar.config.sources, where configs are checked."""

from mvar.config.sources import SOURCES
from mvar.data.sources.contract import DataSource


def find(name: str) -> DataSource:
    """The data source of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    return SOURCES.find(name)()
