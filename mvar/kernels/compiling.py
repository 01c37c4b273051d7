"""`torch.compile` of a layer: once for all layers of a kind, each one graph without a break."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch

from mvar.errors import UserError

BACKEND = "inductor"
KINDS = 64  # of layers in a model that are compiled at most; torch's own limit is 8

F = TypeVar("F", bound=Callable[..., Any])


@cache
def compiled(function: F) -> F:
    """The function, compiled when it is first called with a kind of arguments: a module among them is told from
    another by what it is made of. It must be one graph, and draw no random numbers: compiled it would draw others.

    Raises:
        UserError: there is no C++ compiler, which a CPU needs, or a graph that breaks.
    """
    from torch._dynamo import config  # seconds to import, and few need it

    config.recompile_limit = max(config.recompile_limit, KINDS)
    call = torch.compile(function, fullgraph=True, dynamic=False, backend=BACKEND)

    @wraps(function)
    def checked(*args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:
            raise _explained(error) from error

    return cast("F", checked)


def _explained(error: Exception) -> Exception:
    """A line in place of a compiler's own account; other errors as they are."""
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported
    from torch._inductor.exc import InvalidCxxCompiler

    if isinstance(error, BackendCompilerFailed) and isinstance(error.inner_exception, InvalidCxxCompiler):
        return UserError("runtime.compile: true needs a C++ compiler, g++ or clang++; allowed: install one, or false")
    if isinstance(error, Unsupported):
        why = str(error).strip().splitlines()[0]
        return UserError(f"runtime.compile: a layer cannot be one graph ({why}); allowed: false, or other mixers")
    return error
