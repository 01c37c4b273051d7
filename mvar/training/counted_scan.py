"""Mamba's scan in a count of memory: the back end that a training will run, which keeps other things than another one.

A package's kernel does not run on tensors without values. Of fla-core's stands here what keeps the same: its inputs, of
all heads, as they lie in memory. The kernel of mamba-ssm is counted as torch's scan.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mvar.config import RunConfig, RuntimeConfig
from mvar.kernels import optional
from mvar.kernels.scan import KERNELS

SAID = {
    "torch": "with torch's own scan",
    "plain": "with the reference's scan, uncompiled",
    "fla": "with what fla's scan keeps",
    "mamba_ssm": "with torch's scan in the place of mamba_ssm's",
}


def scan_of(config: RunConfig) -> str | None:
    """The back end of the scan that a training runs on a GPU, None where it has none; `auto` takes what is installed
    here."""
    if not any("mamba" in text for text in config.model.layers):
        return None
    asked = config.runtime.scan_backend
    if config.runtime.compile and asked in ("auto", "torch"):
        return "plain"  # what compilers get
    if asked != "auto":
        return asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a package's, that there is no GPU here
        return next((name for name, kernel in KERNELS.items() if kernel.find() is not None), "torch")


@contextmanager
def standing_in(scan: str | None) -> Iterator[RuntimeConfig]:
    """Settings with which the back end is counted, while what stands in for a kernel is there."""
    if scan != "fla":
        yield RuntimeConfig(scan_backend="plain" if scan == "plain" else "torch", attention_backend="torch")
        return
    found = KERNELS["fla"]._replace(find=lambda: _keeps_inputs)
    with patch.dict(KERNELS, fla=found), patch.object(optional, "fla_scan", lambda: _keeps_inputs):
        yield RuntimeConfig(scan_backend="fla", attention_backend="torch")


class _KeepsInputs(torch.autograd.Function):
    """As fla-core 0.6: queries, keys and values are kept as they lie in memory, and sums of the decays."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(q.contiguous(), k.contiguous(), v.contiguous(), g.cumsum(1))
        return torch.empty_like(v)


def _keeps_inputs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **_: Any) -> tuple[Tensor, None]:
    return _KeepsInputs.apply(q, k, v, g), None  # pyright: ignore[reportReturnType]  no stub says what it returns
