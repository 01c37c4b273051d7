"""The causal convolution against torch's own, in any split of the sequence."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mvar.kernels import causal_conv as module
from mvar.kernels.causal_conv import causal_conv


def draw(batch=2, length=7, channels=6, width=4, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, length, channels), (channels, 1, width), (channels,), (batch, width - 1, channels)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def reference(x, weight, bias, tail, activation=None):
    y = F.conv1d(torch.cat([tail, x], 1).mT, weight, bias, groups=x.shape[-1]).mT
    return F.silu(y) if activation else y


@given(
    length=st.integers(1, 40),
    width=st.integers(2, 5),
    cuts=st.sets(st.integers(1, 39), max_size=5),
    activation=st.sampled_from([None, "silu"]),
)
def test_split_anywhere(length, width, cuts, activation):
    x, weight, bias, tail = draw(length=length, width=width)
    expected = reference(x, weight, bias, torch.zeros_like(tail), activation)
    bounds = [0, *sorted(c for c in cuts if c < length), length]
    tail, outputs = None, []
    for start, stop in pairwise(bounds):
        y, tail = causal_conv(x[:, start:stop], weight, bias, tail, activation)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(tail, F.pad(x, (0, 0, width - 1, 0))[:, length:])
    y, left = module.plain(x, weight, bias, torch.zeros_like(tail), activation)  # what is compiled
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(left, tail)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_gradcheck(activation, length):
    leaves = [t.requires_grad_() for t in draw(length=length, channels=3)]
    assert torch.autograd.gradcheck(lambda *t: causal_conv(*t, activation), leaves)
    assert torch.autograd.gradcheck(lambda *t: causal_conv(*t, None, activation), leaves[:3])


@pytest.mark.parametrize("elements", [1, 30, 10**6])
def test_blocks_change_nothing(monkeypatch, elements):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", elements)
    leaves = [t.requires_grad_() for t in draw(length=23)]
    got, expected = (f(*leaves, "silu") for f in (lambda *a: causal_conv(*a)[0], reference))
    torch.testing.assert_close(got, expected)
    with torch.no_grad():  # nothing is kept then
        torch.testing.assert_close(causal_conv(*leaves, "silu")[0], expected)
    weights = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, leaves, weights), torch.autograd.grad(expected, leaves, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_bf16_adds_up_in_fp32():
    x, weight, bias, tail = draw(dtype=torch.bfloat16)
    y, left = causal_conv(x, weight, bias, tail, "silu")
    expected = reference(*(t.float() for t in (x, weight, bias, tail)), "silu")
    assert y.dtype == left.dtype == torch.bfloat16
    with torch.no_grad():
        assert causal_conv(x, weight, bias, tail, "silu")[0].equal(y)
    torch.testing.assert_close(y, expected.bfloat16(), rtol=2**-7, atol=1e-6)


def test_tail_does_not_hold_the_inputs():
    x, weight, bias, _ = draw(batch=1, length=50)
    assert causal_conv(x, weight, bias)[1].untyped_storage().nbytes() == 3 * 6 * 8


def test_causal_conv1d_is_given_what_it_wants(monkeypatch):
    """Layouts, the tail before and the tail left, with a stand-in that has the kernel's signature: in any split."""

    def kernel(x, weight, bias, initial_states=None, activation=None):
        assert x.stride(1) == 1 and x.stride(0) % 8 == x.stride(2) % 8 == 0
        before = x.new_zeros(*x.shape[:2], weight.shape[1] - 1) if initial_states is None else initial_states
        return reference(x.mT, weight[:, None], bias, before.mT, activation).mT

    monkeypatch.setattr(module.optional, "causal_conv1d", lambda: kernel)
    monkeypatch.setattr(module, "_fits_package", lambda x, weight: True)
    x, weight, bias, tail = draw(length=9, channels=8)
    wide = torch.cat([x, x[..., :3]], -1)[..., :8]  # rows of 11: no multiple of 8
    for first in (None, tail):
        expected, left = causal_conv(x, weight, bias, first, "silu", "torch")
        for cut in (1, 2, 6):
            start, middle = causal_conv(wide[:, :cut], weight, bias, first, "silu")
            end, last = causal_conv(wide[:, cut:], weight, bias, middle, "silu")
            torch.testing.assert_close(torch.cat([start, end], 1), expected)
            assert torch.equal(last, left)


def test_causal_conv1d_is_left_alone_where_it_has_no_kernel(monkeypatch):
    class OnGpu:
        is_cuda, dtype = True, torch.float32

    monkeypatch.setattr(module.optional, "causal_conv1d", lambda: print)
    fits = [module._fits_package(OnGpu, torch.empty(c, 1, k)) for c, k in ((8, 4), (8, 2), (8, 5), (8, 1), (12, 4))]
    assert fits == [True, True, False, False, False]
    assert not module._fits_package(torch.empty(1, 1, 8), torch.empty(8, 1, 4))
