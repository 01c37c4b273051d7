"""How a GPU computes, by the runtime's settings: fp32 products and convolutions in TF32, kernels of the same bits."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

from mvar.config import RunConfig, RuntimeConfig


class OfARun(Protocol):
    """What knows the run that it computes for."""

    config: RunConfig


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=OfARun)


def prepare_process(runtime: RuntimeConfig) -> None:
    """Threads, and the precision of products and convolutions; of the whole process, until the next call."""
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    _set_precision(runtime)


def _set_precision(runtime: RuntimeConfig) -> None:
    on_gpu = runtime.device != "cpu" and torch.cuda.is_available()
    tf32 = on_gpu and runtime.tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32  # of convolutions; torch's own default is on


@contextmanager
def precise(runtime: RuntimeConfig) -> Iterator[None]:
    """While fp32 is as in a run with these settings; afterwards the process has it as before."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_precision(runtime)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def as_in_its_run(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method, or a function of what knows its run, that computes as `precise` with the run's settings."""

    @wraps(method)
    def computed(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with precise(self.config.runtime):
            return method(self, *args, **kwargs)

    return computed


@contextmanager
def reproducible(runtime: RuntimeConfig, device: torch.device) -> Iterator[None]:
    """On GPUs: deterministic kernels where there are any, without which a resumed training would drift."""
    if device.type != "cuda" or not runtime.deterministic:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic: Any = torch.utils.deterministic  # its one attribute is set behind the back of type checkers
    was, fill = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        deterministic.fill_uninitialized_memory = fill
