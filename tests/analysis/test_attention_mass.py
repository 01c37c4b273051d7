"""Attention mass: equal to materialised softmax, to the official code's numbers, and streamed without L x L maps."""

import json

import pytest
import torch
import torch.nn.functional as F
from official import load_model

from analysis.attention import AttentionStats, attention_stats, scale_mass
from mvar.config import ModelConfig, TokenSpace
from mvar.errors import UserError
from mvar.scales import ScaleSchedule
from mvar.transformer import ScaleTransformer


def golden(case):
    facts, model, inputs, outputs = load_model(case)
    return facts, model, inputs["tf.label"], inputs["tf.x"], outputs


def materialised(q, k, schedule):
    """The L x L map that the code under test never holds, summed over the keys of each scale."""
    levels = torch.tensor(schedule.levels)
    scores = (q @ k.transpose(-1, -2)).masked_fill(levels[:, None] < levels, -torch.inf)
    return torch.stack([p.sum(-1) for p in scores.softmax(-1).split(schedule.lengths, -1)], -1)


@pytest.mark.parametrize("head_dim", [3, 16])  # 3: fewer channels than scales
@pytest.mark.parametrize("temperature", [1, 100])  # 100: qk-norm's ceiling, where a naive exp overflows
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_equals_materialised_softmax_in_fp64(head_dim, temperature, chunk):
    schedule = ScaleSchedule((1, 2, 2, 3, 5))
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, schedule.num_tokens, head_dim, dtype=torch.float64)
    mass = scale_mass(q * temperature, k, schedule, chunk)
    expected = materialised(q * temperature, k, schedule)
    assert (mass - expected).abs().max() < 1e-9
    assert (mass.sum(-1) - 1).abs().max() < 1e-9


@pytest.mark.parametrize("case", ["var_plain", "var_l2"])
def test_official_intra_mass_per_query(case):
    _, model, labels, inputs, outputs = golden(case)
    found = {}
    for i, block in enumerate(model.blocks):
        block.attn.register_forward_pre_hook(lambda m, args, i=i: found.update({i: m.project(args[0])}))
    with torch.inference_mode():
        model(labels, inputs)
    for i, (q, k, _) in found.items():
        mass = scale_mass(q, k, model.schedule)
        own = mass.gather(-1, model.levels[None, None, :, None].expand(*mass.shape[:3], 1)).squeeze(-1)
        torch.testing.assert_close(own, outputs[f"attn.intra_per_query.{i}"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["var_plain", "var_l2"])
def test_official_shares(case):
    config, model, labels, inputs, _ = golden(case)
    stats = attention_stats(model.double(), [(labels, inputs.double())])
    assert stats.layers == tuple(range(config["depth"])) and stats.num_images == len(labels)
    for i, official in enumerate(config["attn_shares"]):
        close = lambda ours, theirs: torch.testing.assert_close(  # noqa: E731
            ours, torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=2e-5
        )
        close(stats.intra[i], official["intra"])
        close(1 - stats.intra[i], official["inter"])
        close(stats.intra_per_head[i], official["intra_per_head"])
        close(stats.intra_per_scale[i], official["intra_per_scale"])
        close(stats.intra_without_first_scale[i], official["intra_without_first_scale"])
        close(stats.intra_per_scale[i].mean(), official["intra_mean_of_scale_means"])
        close(stats.matrix[i], official["scale_to_scale_mass"])
    assert stats.share == pytest.approx(sum(s["intra"] for s in config["attn_shares"]) / config["depth"], abs=2e-5)


def tiny(pattern, images=7):
    torch.manual_seed(1)
    model = ScaleTransformer(
        ModelConfig(depth=3, width=16, num_heads=2, pattern=pattern, init_adaln_gamma=1.0),
        TokenSpace((1, 2, 3), 11, 4, 5),
    ).double()
    return model, torch.randint(0, 5, (images,)), torch.randn(images, 13, 4, dtype=torch.float64)


def test_streaming_does_not_depend_on_the_batches():
    model, labels, inputs = tiny("global")
    calls = []
    whole = attention_stats(model, [(labels, inputs)])
    parts = attention_stats(
        model, zip(labels.split(3), inputs.split(3), strict=True), lambda *a: calls.append(a), total=7
    )
    for name in ("mean", "sd", "intra_sd"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)
    assert calls == [(3, 7), (6, 7), (7, 7)]
    singles = torch.stack(
        [attention_stats(model, [(a[None], b[None])]).intra for a, b in zip(labels, inputs, strict=True)]
    )
    torch.testing.assert_close(whole.intra, singles.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.intra_sd, singles.std(0), rtol=0, atol=1e-12)


def test_only_global_layers_are_measured_and_hooks_leave_no_trace():
    model, labels, inputs = tiny("global intra global")
    model.train()
    stats = attention_stats(model, [(labels, inputs)])
    assert stats.layers == (0, 2) and stats.mean.shape == (2, 2, 3, 3)
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_model_without_global_layers_is_refused():
    model, labels, inputs = tiny("intra")
    with pytest.raises(UserError, match=r"model.pattern: 'intra' has no global layer"):
        attention_stats(model, [(labels, inputs)])


def test_no_images_is_refused():
    model, *_ = tiny("global")
    with pytest.raises(UserError, match="no images"):
        attention_stats(model, [])


def test_json_round_trip_and_faults():
    model, labels, inputs = tiny("global")
    stats = attention_stats(model, [(labels, inputs)])
    values = json.loads(json.dumps(stats.to_json()))
    back = AttentionStats.from_json(values)
    assert torch.equal(back.mean, stats.mean) and back.layers == stats.layers and back.share == stats.share
    with pytest.raises(UserError, match="schema_version 99"):
        AttentionStats.from_json(values | {"schema_version": 99})
    del values["mean"]
    with pytest.raises(UserError, match="incomplete"):
        AttentionStats.from_json(values)


def test_queries_are_handled_in_chunks(monkeypatch):
    """Where torch has no fused kernel it holds the scores of one call: these stay below chunk x L a head."""
    schedule = ScaleSchedule((1, 2, 4, 8, 16, 24))  # L = 917
    q, k = torch.randn(2, 1, 1, schedule.num_tokens, 16)
    whole, calls, attention = scale_mass(q, k, schedule), [], F.scaled_dot_product_attention

    def spy(queries, keys, values, **options):
        calls.append(queries.shape[2])
        return attention(queries, keys, values, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    torch.testing.assert_close(scale_mass(q, k, schedule, chunk=100), whole)
    assert max(calls) == 100 and sum(calls) == schedule.num_tokens
