"""Tables that a mixer needs on its device: made and copied once a process."""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def kept_on_device(make: Callable[P, R]) -> Callable[P, R]:
    """`functools.cache` for what holds tensors; what is made of fake ones, in a rehearsal, is not kept."""
    kept = cache(make)

    @wraps(make)
    def get(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_rehearsal():
            return make(*args, **kwargs)
        return cast("R", kept(*args, **kwargs))  # pyright: ignore[reportArgumentType]  its arguments are hashable

    vars(get).update(cache_clear=kept.cache_clear, cache_info=kept.cache_info)
    return get


def is_rehearsal() -> bool:
    """Whether tensors that are made now are fake ones."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
