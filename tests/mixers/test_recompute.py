"""What a layer recomputes in the backward pass changes no bit of a gradient, and selective keeps the products."""

import pytest
import torch
from operators import Counts

from mvar.config import MambaConfig, ModelConfig, RuntimeConfig, TokenSpace
from mvar.kernels.recompute import with_kept
from mvar.registries import MIXERS
from mvar.transformer import DropPath, ScaleTransformer

PATTERNS = [*sorted(MIXERS.names()), "intra+mamba"]


def backward(pattern, kept, half=False):
    """Gradients of a step with drop path on, as the loop does it, and the operators of its backward pass."""
    model = ModelConfig(
        width=16, depth=3, num_heads=2, pattern=pattern, drop_path=0.5, mamba=MambaConfig(d_state=8, headdim=8)
    )
    torch.manual_seed(0)
    space = TokenSpace((1, 2, 3), vocab_size=11, code_channels=5, num_classes=3)
    module = ScaleTransformer(model, space, RuntimeConfig(checkpoint_activations=kept)).train()
    for part in module.modules():
        if isinstance(part, DropPath):
            part.batch_part = (1, 6)
    inputs, labels = torch.randn(4, 13, 5), torch.arange(4) % 3
    torch.manual_seed(1)
    with torch.autocast("cpu", enabled=half):
        loss = module(labels, inputs)[0].square().mean()
    with Counts() as counts:
        loss.backward()
    return [p.grad for p in module.parameters() if p.grad is not None], counts.of


@pytest.mark.parametrize("pattern", PATTERNS)
def test_recomputing_changes_no_bit_of_a_gradient(pattern):
    wanted, plain = backward(pattern, "none")
    selective, kept = backward(pattern, "selective")
    full, all_again = backward(pattern, "full")
    assert all(map(torch.equal, wanted, selective)) and all(map(torch.equal, wanted, full))
    products = ("mm", "addmm", "_scaled_dot_product_flash_attention_for_cpu")
    assert all(kept[name] == plain[name] for name in products)
    assert sum(all_again[name] for name in products) > sum(plain[name] for name in products)
    assert sum(plain.values()) < sum(kept.values()) < sum(all_again.values())


@pytest.mark.parametrize("kept", ["selective", "full"])
def test_nor_under_autocast(kept):
    wanted, _ = backward("intra+mamba", "none", half=True)
    assert all(map(torch.equal, wanted, backward("intra+mamba", kept, half=True)[0]))


def test_inside_a_scan_nothing_is_kept():
    """Its products are done again, in the forward part of a function that has a backward of its own."""
    plain, again = (backward("mamba", kept)[1]["bmm"] for kept in ("none", "selective"))
    assert again > plain


@pytest.mark.parametrize("name", ["_flash_attn_forward", "_flash_attn_varlen_forward"])
def test_attention_of_flash_attn_is_kept_though_it_has_a_backward_of_its_own(name):
    """A stand-in that is called as the package calls its own: by an operator, where gradients are off."""
    calls = []

    def forward(x):
        calls.append(torch.is_grad_enabled())
        return x.square()

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return getattr(torch.ops.flash_attn, name)(x)

        @staticmethod
        def backward(ctx, grad):
            return 2 * ctx.saved_tensors[0] * grad

    def called(kept):
        calls.clear()
        x = torch.tensor([1.0, -2.0], requires_grad=True)
        with_kept(kept, lambda x: Attention.apply(x.sin()).exp(), x).sum().backward()
        return x.grad, list(calls)

    with torch.library._scoped_library("flash_attn", "FRAGMENT") as library:
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, forward, "CompositeExplicitAutograd")
        (wanted, plain), (grad, kept), (again, twice) = map(called, ("none", "selective", "full"))
    assert torch.equal(wanted, grad) and torch.equal(wanted, again)
    assert plain == kept == [False] and twice == [False, False]


def test_without_gradients_a_layer_is_called_as_it_is():
    with torch.no_grad():
        assert with_kept("full", lambda *args: args, 1, None) == (1, None)
