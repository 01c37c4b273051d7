"""Gradients of attention over overlapping runs of keys: autograd's own, to the bit, with fewer operators."""

import pytest
import torch
from operators import Counts

from mvar.kernels import attention
from mvar.kernels.attention import attend
from mvar.scales import ScaleSchedule


def slices(x, bounds):
    """What autograd does by itself."""
    return [x[:, :, start:stop] for start, stop in bounds]


def run(span, reach, known=0):
    torch.manual_seed(0)
    projected = torch.randn(2, known + span.length, 3, 2, 8).permute(2, 0, 3, 1, 4)
    q, k, v = (t.clone(memory_format=torch.preserve_format).requires_grad_() for t in projected)
    y = attend(q[:, :, known:], k, v, span, reach=reach)
    with Counts() as counts:
        gradients = torch.autograd.grad(y, (k, v), y.detach().cos())
    return y, *gradients, counts.of


@pytest.mark.parametrize("sides", [(1, 2, 3, 4), (1, 1, 2), (2, 3)])
@pytest.mark.parametrize("reach", [None, 2])
def test_gradients_are_autograds_to_the_bit(monkeypatch, sides, reach):
    schedule = ScaleSchedule(sides)
    for span, known in ((schedule.span(), 0), (schedule.span(1), schedule.lengths[0])):
        *got, ours = run(span, reach, known)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "_overlapping", slices)
            *wanted, plain = run(span, reach, known)
        assert all(map(torch.equal, got, wanted))
        if len(span.scales) > 1:
            assert ours["slice_backward"] == ours["add"] == 0 < plain["slice_backward"]
