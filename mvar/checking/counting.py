"""What a call does, as torch sees it: FLOPs, pairs under a softmax, bytes that a state keeps alive."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from math import prod
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mvar.kernels import attention, causal_conv

aten = torch.ops.aten


def count_flops(call: Callable[[], Any], leave_out: Iterable[Any] = ()) -> tuple[int, Any]:
    """The FLOPs of a call (a multiply-add is 2) but those of the operations in `leave_out`, and what it returned.

    Matrix products and convolutions are counted by torch, in the math back end of attention, whose products it sees
    in every version. It has no count of triangular systems: ours is added. Our depthwise convolution is multiply-adds
    of whole tensors, which torch takes for elementwise work: those that run inside it are counted too.
    """
    of_convolution = 0
    real = causal_conv._forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal of_convolution
        count = dict.fromkeys((aten.addcmul, aten.addcmul_), lambda *_, out_shape, **__: 2 * prod(out_shape))
        with FlopCounterMode(display=False, custom_mapping=count) as counter:
            result = real(*args, **kwargs)
        of_convolution += counter.get_total_flops()
        return result

    with (
        mock.patch.object(causal_conv, "_forward", counted),
        _every_product(),
        FlopCounterMode(display=False, custom_mapping={aten.linalg_solve_triangular: _triangular}) as counter,
    ):
        result = call()
    left_out = sum(counter.get_flop_counts()["Global"].get(operation, 0) for operation in leave_out)
    return counter.get_total_flops() - left_out + of_convolution, result


def _triangular(system: torch.Size, right: torch.Size, *_: Any, **__: Any) -> int:
    """Of substitution: a multiply-add for each entry of a triangle without its diagonal, each column on the right."""
    return prod(right) * (system[-1] - 1)


@contextmanager
def _every_product() -> Iterator[None]:
    """Attention as products that torch sees, also over a single key, where our kernel knows that the softmax is 1."""

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)

    with mock.patch.object(attention, "_torch", plain), sdpa_kernel(SDPBackend.MATH):
        yield


class _Softmaxes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.cells = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (aten._softmax.default, aten._safe_softmax.default):
            self.cells += result.numel()
        return result


def count_softmax(call: Callable[[], Any]) -> tuple[int, Any]:
    """Over how many elements a call takes a softmax, that of attention included, and what it returned."""
    with _every_product(), _Softmaxes() as softmaxes:
        result = call()
    return softmaxes.cells, result


def tensors_of(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, whatever holds them: tuples, lists, mappings, dataclasses, nothing."""
    if isinstance(state, Tensor):
        yield state
        return
    parts: Iterable[Any] = ()
    if isinstance(state, Mapping):
        parts = state.values()
    elif isinstance(state, tuple | list):
        parts = state
    elif is_dataclass(state) or hasattr(state, "__dict__"):
        parts = vars(state).values()
    for part in parts:
        yield from tensors_of(part)


def storages(state: Any) -> dict[int, int]:
    """Address and bytes of what a state keeps alive: whole storages, not only the part that a view shows."""
    held = (tensor.untyped_storage() for tensor in tensors_of(state))
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def shown_bytes(state: Any) -> int:
    """Bytes of the elements that a state's tensors show."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors_of(state))
