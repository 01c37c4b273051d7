import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from official import tokenizer_config
from safetensors.torch import load_file

from mvar.config import TokenizerConfig
from mvar.errors import UserError
from mvar.scales import ScaleSchedule
from mvar.tokenizer import quantizer as quantizer_module
from mvar.tokenizer.quantizer import ResidualQuantizer, phi_index

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["tok_quant_q0", "tok_quant_q1", "tok_quant_q4_long", "tok_full_q4"]
CLOSE = {"rtol": 1e-5, "atol": 2e-6}  # a few ulp of values around 1


def golden_config(facts: dict) -> TokenizerConfig:
    return tokenizer_config(facts, phi_ratio=facts["quant_resi"])


@pytest.fixture(params=CASES)
def case(request):
    folder = GOLDEN / request.param
    facts = json.loads((folder / "config.json").read_text())
    weights = {
        k.removeprefix("quantize."): v for k, v in load_file(folder / "vae.safetensors").items() if "quantize." in k
    }
    quantizer = ResidualQuantizer(golden_config(facts)).eval()
    quantizer.load_state_dict(weights, strict=True)
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    features = inputs["f"] if "f" in inputs else outputs["f"]
    return facts, quantizer, features, inputs["rand_idx"], outputs


def random_quantizer(sides, share=1, vocab=16, channels=3, dtype=torch.float64, seed=0) -> ResidualQuantizer:
    torch.manual_seed(seed)
    config = TokenizerConfig(patch_sides=sides, vocab_size=vocab, code_channels=channels, share_phi=share)
    return ResidualQuantizer(config).to(dtype)


def test_golden_encode_matches_exactly(case):
    _, quantizer, features, _, outputs = case
    assert torch.equal(quantizer.encode(features), outputs["idx"])


def test_golden_encode_is_the_same_in_small_search_blocks(case, monkeypatch):
    _, quantizer, features, _, outputs = case
    monkeypatch.setattr(quantizer_module, "MAX_SCORE_CELLS", 3 * quantizer.vocab_size)
    assert torch.equal(quantizer.encode(features), outputs["idx"])


def test_golden_latents_and_inputs(case):
    _, quantizer, _, random_tokens, outputs = case
    latents = torch.stack(quantizer.latents(outputs["idx"]))
    torch.testing.assert_close(latents, outputs["f_hat_per_scale"], **CLOSE)
    torch.testing.assert_close(latents, outputs["embed_to_fhat_all"], **CLOSE)
    torch.testing.assert_close(quantizer.inputs(outputs["idx"]), outputs["var_input"], **CLOSE)
    torch.testing.assert_close(quantizer.inputs(random_tokens), outputs["rand_var_input"], **CLOSE)


def test_golden_autoregressive_steps(case):
    _, quantizer, _, _, outputs = case
    schedule = quantizer.schedule
    latent = torch.zeros_like(outputs["ar_step.0.f_hat"])
    for scale in range(schedule.num_scales):
        tokens = outputs["idx"][:, schedule.offsets[scale] : schedule.offsets[scale + 1]]
        latent = quantizer.add(latent, quantizer.embed(tokens), scale)
        torch.testing.assert_close(latent, outputs[f"ar_step.{scale}.f_hat"], **CLOSE)
        upcoming = min(scale + 1, schedule.num_scales - 1)
        expected = outputs[f"ar_step.{scale}.next"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(quantizer.next_input(latent, upcoming), expected, **CLOSE)


def test_golden_training_forward_and_gradients(case):
    _, quantizer, features, _, outputs = case
    features = features.clone().requires_grad_()
    latent, loss = quantizer(features)
    weight = torch.linspace(-1, 1, latent.numel()).view_as(latent)
    (loss + (weight * latent).mean()).backward()
    torch.testing.assert_close(latent.detach(), outputs["qfwd.f_hat"], **CLOSE)
    torch.testing.assert_close(loss.detach(), outputs["qfwd.vq_loss"].squeeze(), **CLOSE)
    torch.testing.assert_close(features.grad, outputs["qfwd.grad_f"], **CLOSE)
    torch.testing.assert_close(quantizer.embedding.weight.grad, outputs["qfwd.grad_embedding"], **CLOSE)


def test_golden_phi_of_each_scale(case):
    facts, quantizer, _, _, _ = case
    count = len(facts["patch_nums"])
    expected = facts["phi_index_per_scale"] or [0] * count
    assert [phi_index(k, count, quantizer.num_phis) for k in range(count)] == expected


@given(st.integers(1, 20))
def test_one_phi_a_scale_is_in_order(count):
    assert [phi_index(k, count, count) for k in range(count)] == list(range(count))


@settings(max_examples=25, deadline=None)
@given(
    sides=st.lists(st.integers(1, 7), min_size=1, max_size=5).map(sorted).map(tuple),
    share=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_inputs_and_latents_equal_the_steps_of_sampling(sides, share, seed):
    quantizer = random_quantizer(sides, share, seed=seed)
    schedule = quantizer.schedule
    tokens = torch.randint(quantizer.vocab_size, (2, schedule.num_tokens))
    inputs, latents = quantizer.inputs(tokens), quantizer.latents(tokens)
    assert inputs.shape == (2, schedule.num_tokens - schedule.lengths[0], quantizer.code_channels)
    assert len(latents) == schedule.num_scales
    latent = torch.zeros_like(latents[0])
    for scale, span in enumerate(schedule.steps()):
        if scale:
            seen = inputs[:, span.start - schedule.lengths[0] : span.stop - schedule.lengths[0]]
            torch.testing.assert_close(seen, quantizer.next_input(latent, scale))
        latent = quantizer.add(latent, quantizer.embed(tokens[:, span.start : span.stop]), scale)
        torch.testing.assert_close(latent, latents[scale])


@settings(max_examples=25, deadline=None)
@given(
    sides=st.lists(st.integers(1, 7), min_size=1, max_size=5).map(sorted).map(tuple),
    share=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_encode_is_greedy_and_forward_reaches_the_same_latent(sides, share, seed):
    quantizer = random_quantizer(sides, share, seed=seed)
    features = torch.randn(2, 3, sides[-1], sides[-1], dtype=torch.float64)
    tokens = quantizer.encode(features)
    latents = quantizer.latents(tokens)
    residual = features
    for scale, part in enumerate(tokens.split(list(quantizer.schedule.lengths), dim=1)):
        distances = torch.cdist(quantizer.next_input(residual, scale), quantizer.embedding.weight[None])
        torch.testing.assert_close(distances.gather(2, part[..., None]), distances.amin(2, keepdim=True))
        residual = features - latents[scale]
    torch.testing.assert_close(quantizer(features)[0], latents[-1])


def test_exact_codes_are_found_again():
    quantizer = random_quantizer((4,), vocab=16)
    quantizer.quant_resi["qresi"].ratio = 0.0  # phi is then the identity
    tokens = torch.randint(16, (3, 16))
    features = quantizer.embed(tokens).transpose(1, 2).unflatten(2, (4, 4))
    assert torch.equal(quantizer.encode(features), tokens)
    assert quantizer(features)[1] == 0


def test_phi_ratio_zero_has_no_phi_parameters():
    quantizer = ResidualQuantizer(TokenizerConfig(phi_ratio=0))
    assert set(quantizer.state_dict()) == {"embedding.weight", "ema_vocab_hit_SV"}
    assert quantizer(torch.randn(1, 8, 4, 4))[0].shape == (1, 8, 4, 4)


def test_another_schedule_and_a_first_scale_above_one():
    quantizer = random_quantizer((1, 2, 4), share=4)
    features = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert quantizer.encode(features, ScaleSchedule((2, 3, 4))).shape == (2, 29)
    own = quantizer.encode(features, ScaleSchedule((1, 2, 4)))
    assert torch.equal(own, quantizer.encode(features))


def test_features_of_another_side_are_refused():
    quantizer = random_quantizer((1, 2, 4))
    with pytest.raises(UserError, match=r"ends at side 4, the features are 5x5"):
        quantizer.encode(torch.zeros(1, 3, 5, 5))


def test_an_image_does_not_depend_on_its_batch():
    quantizer = random_quantizer((1, 2, 3, 4), share=4)
    features = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    one_by_one = torch.cat([quantizer.encode(f[None]) for f in features])
    assert torch.equal(quantizer.encode(features), one_by_one)


def test_autocast_changes_nothing():
    quantizer = random_quantizer((1, 2, 3, 4), share=4, dtype=torch.float32)
    features = torch.randn(2, 3, 4, 4)
    tokens = quantizer.encode(features)
    latent = quantizer.latents(tokens)[-1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(features), tokens)
        assert torch.equal(quantizer.latents(tokens)[-1], latent)
        codes = quantizer.embed(tokens[:, :1]).bfloat16()  # what a half-precision caller may hand over
        assert quantizer.add(torch.zeros_like(latent), codes, 0).dtype == torch.float32


def test_usage_counts_hits_in_training_only():
    quantizer = random_quantizer((1, 2), vocab=4).eval()
    features = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    quantizer(features)
    assert quantizer.ema_vocab_hit_SV.sum() == 0 and quantizer.usage()["codes_used"] == 0
    quantizer.train()(features)
    tokens = quantizer.encode(features)
    expected = torch.stack([part.flatten().bincount(minlength=4) for part in tokens.split([1, 4], dim=1)])
    assert torch.equal(quantizer.ema_vocab_hit_SV, expected.double())
    quantizer(features)
    torch.testing.assert_close(quantizer.ema_vocab_hit_SV, expected.double())
    assert quantizer.usage()["codes_used_scale_01"] == (expected[1] > 0.08 * expected[1].double().mean()).float().mean()


def test_usage_of_another_number_of_scales_is_dropped_on_loading():
    source, target = random_quantizer((1, 4)), random_quantizer((1, 2, 4))
    source.train()(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    state = source.state_dict()
    target.load_state_dict(state, strict=True)
    assert torch.equal(target.embedding.weight, source.embedding.weight)
    assert target.ema_vocab_hit_SV.shape == (3, 16) and target.ema_vocab_hit_SV.sum() == 0
    assert state["ema_vocab_hit_SV"].shape == (2, 16)  # the caller's dictionary is left alone


def test_codes_initialised_from_residuals_repeat_for_a_seed():
    features = 0.05 * torch.randn(64, 3, 4, 4, dtype=torch.float64)
    quantizer = random_quantizer((1, 2, 4), share=4, vocab=32)
    twin = copy.deepcopy(quantizer)
    quantizer.init_codes(features, torch.Generator().manual_seed(3))
    twin.init_codes(features, torch.Generator().manual_seed(3))
    assert torch.equal(quantizer.embedding.weight, twin.embedding.weight)
    twin.init_codes(features, torch.Generator().manual_seed(4))
    assert not torch.equal(quantizer.embedding.weight, twin.embedding.weight)
    assert len(quantizer.embedding.weight.unique(dim=0)) == 32
    # The first share of codes is drawn from the coarsest residuals themselves.
    coarse = quantizer.next_input(features, 0).flatten(0, 1)
    differences = (quantizer.embedding.weight[:10, None] - coarse).abs().amax(-1)
    assert (differences.amin(1) == 0).all()


def test_with_a_code_for_every_residual_the_initial_fit_is_exact():
    quantizer = ResidualQuantizer(
        TokenizerConfig(patch_sides=(1, 2), vocab_size=20, code_channels=3, phi_ratio=0)
    ).double()
    features = torch.randn(4, 3, 2, 2, dtype=torch.float64)  # 4 residual vectors at scale 0, 16 at scale 1
    quantizer.init_codes(features, torch.Generator().manual_seed(0))
    torch.testing.assert_close(quantizer(features)[0], features)


@pytest.mark.parametrize("sides, vocab", [((4,), 7), ((1, 2, 3, 4, 5), 3), ((1, 2), 64)])
def test_init_codes_with_few_codes_or_few_vectors(sides, vocab):
    quantizer = random_quantizer(sides, vocab=vocab)
    quantizer.init_codes(torch.randn(1, 3, sides[-1], sides[-1]), torch.Generator().manual_seed(0))
    assert quantizer.embedding.weight.isfinite().all()


def test_dead_codes_restart_on_residuals_and_then_rest():
    quantizer = random_quantizer((1, 2, 4), share=4, vocab=32).train()
    features = torch.randn(16, 3, 4, 4, dtype=torch.float64)
    quantizer.embedding.weight.data[8:] += 1e3  # out of reach
    quantizer(features)
    kept = quantizer.embedding.weight[:8].clone()
    state = copy.deepcopy(quantizer.state_dict())
    moved = quantizer.restart_dead_codes(features, torch.Generator().manual_seed(0))
    assert set(range(8, 32)) <= set(moved.tolist())
    alive = [k for k in range(8) if k not in moved.tolist()]
    assert torch.equal(quantizer.embedding.weight[alive], kept[alive])
    assert quantizer.embedding.weight.abs().max() < 100
    assert len(quantizer.restart_dead_codes(features, torch.Generator().manual_seed(1))) == 0
    # From the state dict alone, another quantizer makes the same choice: resuming is bit-identical.
    resumed = random_quantizer((1, 2, 4), share=4, vocab=32, seed=9).train()
    resumed.load_state_dict(state)
    resumed.restart_dead_codes(features, torch.Generator().manual_seed(0))
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])
    assert quantizer.encode(features).unique().numel() > 16  # at most 8 were in reach before
