import math

import numpy as np
import pytest
import torch
from torch import nn

from mvar.config import ModelConfig, TokenizerConfig, TokenSpace
from mvar.errors import UserError
from mvar.evaluation import likelihood
from mvar.evaluation.likelihood import MOST_TOKENS, heldout_nll
from mvar.presets import PRESETS
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

SPACE = TokenSpace((1, 2, 3), vocab_size=11, code_channels=4, num_classes=3)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model = ScaleTransformer(ModelConfig(depth=2, width=16, num_heads=2, drop_path=0.5, init_head=1.0), SPACE)
    config = TokenizerConfig(patch_sides=SPACE.patch_sides, vocab_size=11, code_channels=4)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (13, 14)).astype(np.uint8)  # as a token cache stores them
    return model, ResidualQuantizer(config), tokens, rng.integers(0, 3, 13)


def test_equals_a_direct_computation_for_every_batch_size(parts):
    model, quantizer, tokens, labels = parts
    model.eval()
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))
        logits, _ = model(torch.from_numpy(labels), quantizer.inputs(ids))
        probability = logits.double().softmax(-1).gather(-1, ids[..., None])[..., 0]
    bits = -probability.log2()
    for batch_size in (1, 5, 100):
        found = heldout_nll(model, quantizer, tokens, labels, batch_size=batch_size)
        assert found["eval/nll_bits_per_token"] == pytest.approx(bits.mean().item(), rel=1e-6)
        for scale, part in enumerate(bits.split([1, 4, 9], dim=1)):
            assert found[f"eval/nll_bits_scale_{scale:02d}"] == pytest.approx(part.mean().item(), rel=1e-6)
        wrong = (logits.argmax(-1) != ids).double()
        assert found["eval/error"] == pytest.approx(wrong.mean().item(), abs=1e-9)
        for scale, part in enumerate(wrong.split([1, 4, 9], dim=1)):
            assert found[f"eval/error_scale_{scale:02d}"] == pytest.approx(part.mean().item(), abs=1e-9)
    assert len(found) == 8


@pytest.mark.parametrize(("most", "sizes"), [(1 << 17, [13]), (14 * 5 + 13, [5, 5, 3]), (13, [1] * 13)])
def test_a_pass_has_a_limited_number_of_tokens(parts, monkeypatch, most, sizes):
    """Of whole images, and of one where it has more; up to 256 px the hundred images of before are one pass."""
    model, quantizer, tokens, labels = parts
    wanted, passes = heldout_nll(model, quantizer, tokens, labels), []
    monkeypatch.setattr(likelihood, "MOST_TOKENS", most)
    handle = model.head.register_forward_hook(lambda module, given, out: passes.append(len(out)))
    found = heldout_nll(model, quantizer, tokens, labels)
    handle.remove()
    assert passes == sizes and found == pytest.approx(wanted, rel=1e-6)
    for name in ("digits", "fashion32-small", "imagenet256-d16"):
        assert MOST_TOKENS // PRESETS[name].token_space.schedule.num_tokens >= 100, name


def test_is_deterministic_and_leaves_the_mode(parts):
    model, quantizer, tokens, labels = parts
    model.train()  # drop path would be at work
    first = heldout_nll(model, quantizer, tokens, labels)
    assert model.training
    model.eval()
    assert heldout_nll(model, quantizer, tokens, labels) == first


def test_a_uniform_model_needs_log2_v_bits(parts):
    _, quantizer, tokens, labels = parts
    model = ScaleTransformer(ModelConfig(depth=1, width=16, num_heads=2), SPACE)
    nn.init.zeros_(model.head.weight)
    found = heldout_nll(model, quantizer, tokens, labels)
    bits = {name: value for name, value in found.items() if "nll" in name}
    assert bits == {name: pytest.approx(math.log2(11), rel=1e-6) for name in bits} and len(bits) == 4


def test_labels_matter(parts):
    model, quantizer, tokens, labels = parts
    assert heldout_nll(model, quantizer, tokens, labels) != heldout_nll(model, quantizer, tokens, (labels + 1) % 3)


def test_a_diverged_model_is_an_error_not_a_number(parts):
    _, quantizer, tokens, labels = parts
    model = ScaleTransformer(ModelConfig(depth=1, width=16, num_heads=2), SPACE)
    nn.init.constant_(model.head.weight, math.nan)
    with pytest.raises(UserError, match="logits on held-out images are not finite"):
        heldout_nll(model, quantizer, tokens, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, y: (t[:, :-1], y), r"heldout_tokens: shape \(13, 13\); allowed: \(images, 14\)"),
        (lambda t, y: (t[:0], y[:0]), "heldout_tokens: shape"),
        (lambda t, y: (t, y[:-1]), "heldout_labels: shape"),
        (lambda t, y: (t + 1, y), "heldout_tokens: values 1 to 11; allowed: 0 to 10"),
        (lambda t, y: (t, y + 1), "heldout_labels: values 1 to 3; allowed: 0 to 2"),
    ],
)
def test_what_does_not_fit_is_named(parts, change, message):
    model, quantizer, tokens, labels = parts
    with pytest.raises(UserError, match=message):
        heldout_nll(model, quantizer, *change(tokens, labels))
