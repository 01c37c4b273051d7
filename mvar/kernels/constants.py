"""Tables that a mixer needs on its device: made and copied once a process."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def kept_on_device(make: Callable[P, R]) -> Callable[P, R]:
    """`functools.cache` for a tensor; what is made of fake ones, in a rehearsal, is not kept.

    To a compiler it is a constant of the graph: its arguments must be plain values, or objects that live on.
    """
    kept = cache(make)

    def constant(*args: Any) -> R:
        return cast("R", kept(*args))

    # what `torch.compiler.assume_constant_result` does, which imports the compiler: seconds that few need
    vars(constant)["_dynamo_marked_constant"] = True

    @wraps(make)
    def get(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return constant(*args, **kwargs)
        if is_rehearsal():
            return make(*args, **kwargs)
        return cast("R", kept(*args, **kwargs))  # pyright: ignore[reportArgumentType]  its arguments are hashable

    vars(get).update(cache_clear=kept.cache_clear, cache_info=kept.cache_info)
    return get


def is_rehearsal() -> bool:
    """Whether tensors that are made now are fake ones."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
