"""The backbone against the official code: logits, hidden states, losses and gradients on random weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from official import GOLDEN, load_model

from mvar.config import ModelConfig, RuntimeConfig, TokenSpace
from mvar.scales import ScaleSchedule
from mvar.transformer import Block, DropPath, ScaleTransformer

CASES = ["var_plain", "var_plain_shared", "var_l2", "var_l2_shared", "mvar_plain", "mvar_l2"]


def within_noise(actual, expected, noise, factor=8):
    """Within a small multiple of the official code's own fp32 rounding error."""
    assert (actual - expected).abs().max().item() <= factor * noise


@pytest.mark.parametrize("case", CASES)
def test_teacher_forcing(case):
    facts, model, inputs, outputs = load_model(case)
    seen = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(f"tf.block.{i}.out", out[0]))
        for name in block.mixer_names:
            key = f"tf.block.{i}.{name}"
            block.get_submodule(name).register_forward_hook(lambda m, a, out, key=key: seen.__setitem__(key, out[0]))
    model.blocks[0].register_forward_pre_hook(lambda m, a: seen.__setitem__("tf.x_in", a[0]))
    logits, _ = model(inputs["tf.label"], inputs["tf.x"])
    noise = facts["noise"]["tf_logits_fp32_vs_fp64"]
    within_noise(logits, outputs["tf.logits"], noise)
    expected = {k for k in outputs if k.startswith("tf.block.") or k == "tf.x_in"}
    assert expected == seen.keys()
    for key in expected:
        within_noise(seen[key], outputs[key], noise)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients(case):
    facts, model, inputs, outputs = load_model(case)
    logits, _ = model(inputs["tf.label"], inputs["tf.x"])
    per_token = F.cross_entropy(logits.flatten(0, 1), inputs["tf.gt_idx"].flatten(), reduction="none")
    torch.testing.assert_close(per_token.view_as(inputs["tf.gt_idx"]), outputs["tf.loss_per_token"], rtol=0, atol=1e-4)
    per_token.mean().backward()
    parameters = dict(model.named_parameters())
    assert list(parameters) == [n for n in parameters if n in facts["grad_norm_names"]]
    norms = torch.stack([parameters[name].grad.norm() for name in facts["grad_norm_names"]])
    torch.testing.assert_close(norms, outputs["tf.grad_norms"], rtol=1e-4, atol=1e-7)
    small = [k.removeprefix("tf.grad.") for k in outputs if k.startswith("tf.grad.")]
    assert small
    for name in small:
        within_noise(
            parameters[name].grad, outputs[f"tf.grad.{name}"], facts["noise"]["tf_small_grads_max_abs_fp32_vs_fp64"]
        )


@torch.no_grad()
def test_mixers_of_one_branch_are_summed():
    """On the same tokens, with the one gate, scale and shift of their branch; then the feed-forward."""
    torch.manual_seed(0)
    config = ModelConfig(depth=1, width=16, num_heads=2, mamba={"d_state": 4, "headdim": 8})
    block = Block(config, "intra|mamba", 0, RuntimeConfig(device="cpu"))
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    span, x, condition = ScaleSchedule((1, 2, 3)).span(), torch.randn(2, 14, 16), torch.randn(2, 16)
    gates, scales, shifts = block.ada_lin(condition).view(2, 1, 3, 2, 16).unbind(2)

    def modulated(number):
        return F.layer_norm(x, (16,), eps=1e-6) * (1 + scales[:, :, number]) + shifts[:, :, number]

    found, _ = block(x, condition, span, None)
    x = x + gates[:, :, 0] * (block.attn(modulated(0), span)[0] + block.mamba(modulated(0), span)[0])
    torch.testing.assert_close(found, x + gates[:, :, 1] * block.ffn(modulated(1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["var", "mvar"])
def test_initialisation_statistics_are_official(kind):
    facts = json.loads((GOLDEN / "param_counts" / "init_stats.json").read_text())[kind]
    config = ModelConfig(
        depth=facts["depth"],
        width=facts["width"],
        num_heads=facts["heads"],
        pattern={"var": "global", "mvar": "intra+mamba"}[kind],
        init_adaln=facts["init_adaln"],
        init_adaln_gamma=facts["init_adaln_gamma"],
        init_head=facts["init_head"],
    )
    torch.manual_seed(0)
    model = ScaleTransformer(config, TokenSpace((1, 2, 3, 4), vocab_size=512, code_channels=32, num_classes=100))
    for name, p in model.named_parameters():
        if name not in facts["params"]:
            assert name.startswith("blocks.") and not name.startswith(f"blocks.{config.depth - 1}."), name
            continue
        official = facts["params"][name]
        assert list(p.shape) == official["shape"]
        # Two random draws: the standard error of a standard deviation is about std / sqrt(2 n)
        slack = 6 / (2 * p.numel()) ** 0.5
        if p.numel() > 100:
            assert p.std().item() == pytest.approx(official["std"], rel=2 * slack, abs=1e-12), name
        for i, std in enumerate(official.get("std_of_each_chunk", [])):
            chunk = p.view(-1, config.width, p.shape[-1])[i]
            assert chunk.std().item() == pytest.approx(std, rel=0.05), (name, i)


def test_fixed_initialisation_closes_every_gate():
    config = ModelConfig(depth=2, width=64, pattern="intra+mamba", init="fixed", init_adaln_gamma=1e-5)
    model = ScaleTransformer(config, TokenSpace((1, 2), 8, 4, 3))
    gates = model.blocks[0].ada_lin[1].weight.view(9, 64, 64)[:3]
    assert gates.std((1, 2)).max() < 1e-5


def test_stochastic_depth_acts_in_training_only():
    torch.manual_seed(0)
    model = ScaleTransformer(ModelConfig(depth=4, width=16, num_heads=2, drop_path=0.5), TokenSpace((1, 2), 8, 4, 3))
    labels, inputs = torch.arange(3), torch.randn(3, 4, 4)
    evaluated = model.eval()(labels, inputs)[0]
    assert torch.equal(model(labels, inputs)[0], evaluated)
    assert not torch.equal(model.train()(labels, inputs)[0], evaluated)


@pytest.mark.parametrize(("depth", "rate"), [(1, 0.3), (2, 0.1), (5, 0.4), (16, 0.1 * 16 / 24)])
def test_stochastic_depth_grows_linearly_from_0(depth, rate):
    config = ModelConfig(depth=depth, width=16, num_heads=2, drop_path=rate)
    blocks = ScaleTransformer(config, TokenSpace((1, 2), 8, 4, 3)).blocks
    assert blocks[0].drop_path is None
    rates = [block.drop_path.rate if block.drop_path else 0.0 for block in blocks]
    expected = torch.linspace(0, rate, depth, dtype=torch.float64) if depth > 1 else torch.zeros(1)  # official code's
    assert rates == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_stochastic_depth_drops_whole_images_and_scales_the_others(rate):
    torch.manual_seed(0)
    images = 20_000
    x = torch.randn(images, 3, 2)
    y = DropPath(rate).train()(x)
    dropped = (y == 0).all(dim=(1, 2))
    assert torch.equal(dropped, (y == 0).any(dim=(1, 2)))  # all of an image or nothing
    torch.testing.assert_close(y[~dropped], x[~dropped] / (1 - rate))
    deviation = (rate * (1 - rate) / images) ** 0.5
    assert dropped.double().mean().item() == pytest.approx(rate, abs=4 * deviation)


def test_stochastic_depth_draws_for_the_whole_batch_of_a_step():
    """A process or micro-batch that holds some of the rows drops those that one process alone would drop."""
    x, drop_path = torch.ones(6, 2, 3), DropPath(0.5).train()
    parts = []
    for batch_part, rows in ((None, slice(0, 6)), ((0, 6), slice(0, 2)), ((2, 6), slice(2, 6))):
        torch.manual_seed(3)
        drop_path.batch_part = batch_part
        parts.append(drop_path(x[rows]))
    assert 0 < (parts[0] == 0).double().mean() < 1
    assert torch.equal(torch.cat(parts[1:]), parts[0])


class Fixed(torch.nn.Module):
    """In place of `DropPath`: given factors, one a branch."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = list(factors)

    def draw(self, x):
        return torch.tensor(self.factors.pop(0), dtype=x.dtype)


def test_stochastic_depth_of_a_layer_drops_each_branch_of_each_image_by_itself():
    """Four things can become of an image in a layer of two branches; gate included, residual path left alone."""
    torch.manual_seed(0)
    config, span = ModelConfig(depth=2, width=16, num_heads=2), ScaleSchedule((1, 2)).span()
    block = Block(config, "global", 0.5, RuntimeConfig()).train()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, condition = torch.randn(40, span.length, 16), torch.randn(40, 16)
    with torch.no_grad():
        got, _ = block(x, condition, span, None)
        possible = []
        for factors in ((0, 0), (0, 2), (2, 0), (2, 2)):
            block.drop_path = Fixed(*factors)
            possible.append(block(x, condition, span, None)[0])
    assert torch.equal(possible[0], x)
    is_it = torch.stack([(got - outcome).abs().amax((1, 2)) < 1e-4 for outcome in possible])
    assert torch.equal(is_it.sum(0), torch.ones(40, dtype=torch.long))  # each image is one of the four
    assert is_it.any(1).all()  # and each of the four occurs
