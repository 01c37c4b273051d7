"""FLOPs as torch counts them, and what its counter leaves out."""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mvar.config import ModelConfig
from mvar.kernels.causal_conv import causal_conv
from mvar.mixers.base import Mixer
from mvar.scales import Span

aten = torch.ops.aten


def count_flops(call: Callable[[], Any], leave_out: Iterable[Any] = ()) -> tuple[int, Any]:
    """The FLOPs of a call (a multiply-add is 2) but those of the operations in `leave_out`, and what it returned.

    Matrix products and convolutions are counted by torch, in the math back end of attention, whose products it sees
    in every version. Mamba's depthwise convolution is multiply-adds of whole tensors, which torch takes for
    elementwise work: those that run inside it are counted too.
    """
    of_convolution = 0

    def counted(*args, **kwargs):
        nonlocal of_convolution
        count = dict.fromkeys((aten.addcmul, aten.addcmul_), lambda *_, out_shape, **__: 2 * prod(out_shape))
        with FlopCounterMode(display=False, custom_mapping=count) as counter:
            result = causal_conv(*args, **kwargs)
        of_convolution += counter.get_total_flops()
        return result

    with (
        mock.patch("mvar.mixers.mamba.causal_conv", counted),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        result = call()
    left_out = sum(counter.get_flop_counts()["Global"].get(operation, 0) for operation in leave_out)
    return counter.get_total_flops() - left_out + of_convolution, result


def flops_without_a_kernel(cls: type[Mixer], config: ModelConfig, span: Span) -> int:
    """What the formula counts and no kernel does: the softmax over the one key of a scale of one token is 1."""
    scales = (cls.score_cells(span.schedule.span(scale, scale + 1)) for scale in span.scales)
    return sum(4 * config.width for cells in scales if cells == 1)
