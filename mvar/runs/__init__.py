"""The engine: the store of results, the stages and the pipeline of a run, plans, and the runners that make runs.

It can be called: `mvar.runs("results")` is the table of all runs (`mvar.api.tables.runs`).
"""

import inspect
import sys
from types import ModuleType
from typing import Any

from mvar.registry import loaded


class _Callable(ModuleType):
    """The package, which is a public name at once: the table of what it has made."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _table()(*arguments, **options)

    @property
    def __doc__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  text all the same
        """What `help(mvar.runs)` begins with: the table's, then the package's own."""
        return f"{inspect.getdoc(_table())}\n\n{ABOUT}"

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_table())


def _table() -> Any:
    return loaded("mvar.api.tables:runs")  # by its path: the table is read by a room above


ABOUT = __doc__ or ""
sys.modules[__name__].__class__ = _Callable
