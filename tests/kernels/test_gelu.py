"""Our GELU is torch's tanh-approximated one, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from mvar.kernels import gelu as module
from mvar.kernels.gelu import gelu


@pytest.mark.parametrize("block", [7, 1 << 16])
def test_is_torchs(monkeypatch, block):
    """Over the whole range of fp64, in strides too, and whatever the number of blocks."""
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    x = torch.linspace(-30, 30, 6 * 101, dtype=torch.float64).view(2, 303).T.requires_grad_()
    ours, theirs = gelu(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    weights = torch.randn_like(ours)
    gradients = (torch.autograd.grad(y, x, weights)[0] for y in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(gelu(x.clone()), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounds_no_more_than_torch(dtype):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(4).to(dtype)
    exact = F.gelu(x.double(), approximate="tanh")
    theirs = (F.gelu(x, approximate="tanh").double() - exact).abs().max()
    assert (gelu(x.clone()).double() - exact).abs().max() <= 2 * theirs


def test_gradient():
    x = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gelu, (x,))
