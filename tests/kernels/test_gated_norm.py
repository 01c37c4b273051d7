"""The gated RMSNorm against its definition."""

import pytest
import torch
import torch.nn.functional as F

from mvar.kernels.gated_norm import gated_rms_norm, plain


def reference(y, z, weight, eps):
    gated = y * F.silu(z)
    return gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + eps) * weight


def draw(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((2, 3, 5), (2, 3, 5), (5,))]


@pytest.mark.parametrize("eps", [1e-5, 1.0])
def test_definition_and_gradients(eps):
    leaves = [t.requires_grad_() for t in draw()]
    for norm in (gated_rms_norm, plain):
        torch.testing.assert_close(norm(*leaves, eps), reference(*leaves, eps), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *t: gated_rms_norm(*t, eps), leaves)


def test_eps_matters_for_small_inputs():
    """As at M-VAR's initialisation, where the activations are that small."""
    y, z, weight = draw()
    torch.testing.assert_close(gated_rms_norm(y * 1e-4, z, weight, 1e-5), reference(y * 1e-4, z, weight, 1e-5))


def test_bf16_computes_in_fp32():
    y, z, weight = draw(torch.bfloat16)
    out = gated_rms_norm(y, z, weight, 1e-5)
    assert out.dtype == torch.bfloat16
    expected = reference(y.float(), z.float(), weight.float(), 1e-5)
    torch.testing.assert_close(out, expected.bfloat16(), rtol=2**-7, atol=1e-6)
