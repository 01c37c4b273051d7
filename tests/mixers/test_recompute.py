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


def test_without_gradients_a_layer_is_called_as_it_is():
    with torch.no_grad():
        assert with_kept("full", lambda *args: args, 1, None) == (1, None)
