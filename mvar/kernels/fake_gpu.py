"""A GPU's forward pass without a GPU: shapes, devices, what is launched and what is kept for backward; no numbers.

torch's fake tensors say they are on `cuda` where there is none. Two things they do not do by themselves: autocast, and
the choice of an attention kernel, which asks the driver and else falls back to one that keeps every score. Backward
does not work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def fake_gpu(precision: str = "fp32") -> Iterator[None]:
    """Inside, tensors can be made on `cuda` and hold no values; the precision is autocast's, as the training loop's.

    A module comes here by `to_empty(device="cuda")`, from `meta`: initialising it here would wait for the device.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import, and few need it

    _start_autograd()
    was, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    try:
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            _FusedAttention(),
            # else `torch.autocast` asks for the driver
            patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            patch.object(torch.cuda, "is_bf16_supported", lambda: True),
        ):
            torch.set_autocast_enabled("cuda", precision in HALF)
            torch.set_autocast_dtype("cuda", HALF.get(precision, dtype))
            yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", was)
        torch.set_autocast_dtype("cuda", dtype)


@cache
def _start_autograd() -> None:
    """A backward pass before torch counts a GPU that is not there: its engine, which starts with the first one, would
    keep a thread for it, and a process that is forked off this one could not train."""
    with torch.inference_mode(False), torch.enable_grad():
        torch.zeros((), requires_grad=True).backward()


class _FusedAttention(TorchFunctionMode):
    """Attention by the kernels that a GPU takes: flash where it can, else the memory-efficient one."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    if q.dim() == 3:  # one head; the kernels want four dimensions
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))
        return _attention(q, k, v, attn_mask, scale).squeeze(1)
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        q, k, v = q.to(half), k.to(half), v.to(half)
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if attn_mask is None and q.dtype in HALF.values():
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).expand(*q.shape[:-1], k.shape[-2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, attn_mask, needs_gradient, scale=scale)[0]
