"""The engine: the store of results, the stages and the pipeline of a run, plans, and the runners that make runs.

It can be called: `mvar.runs("results")` is the table of all runs (`mvar.api.tables.runs`).
"""

import sys
from types import ModuleType
from typing import Any

from mvar.registry import loaded


class _Callable(ModuleType):
    """The package, which is a public name at once: the table of what it has made."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        # by its path: the table is read by a room above
        return loaded("mvar.api.tables:runs")(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
