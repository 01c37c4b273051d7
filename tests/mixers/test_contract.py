"""The mixer contract, for every registered mixer: one code path for training and sampling.

A mixer that is added to the registry is covered here by itself.
"""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvar.checking.mixer import check_mixer, texts_to_check
from mvar.config import MambaConfig, ModelConfig, TokenSpace
from mvar.cost import num_params
from mvar.mixers.base import mixer_class
from mvar.mixers.scale_attention import ScaleAttention
from mvar.pattern import parse_layer, replaced_layers
from mvar.registries import MIXERS as REGISTERED
from mvar.transformer import ScaleTransformer

MIXERS = sorted(REGISTERED.names())
OFFICIAL = ("global", "intra", "mamba")
PAIRS = [f"{a}+{b}" for a in OFFICIAL for b in OFFICIAL if a != b]
PAIRS += [f"intra+{name}" for name in MIXERS if name not in OFFICIAL]  # of all others: the contract's `beside others`
PAIRS += ["intra|mamba", "mamba+intra|linear"]  # in parallel
PATTERNS = [*MIXERS, *PAIRS, "global intra+mamba 1*global", "2*intra+mamba mamba", "intra|mamba global mamba"]
REPLACEMENTS = ["none", "all", "first:2", "last:1", "last:3", "every:2", "every:3", "0,3"]
SCHEDULES = [(1, 2, 3, 4), (2, 3, 5), (4,), (1, 1, 6)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def model_config(pattern="global", **fields):
    fields = {"depth": 3, "attn_l2_norm": True, "mamba": MambaConfig(d_state=8, headdim=8)} | fields
    return ModelConfig(width=16, num_heads=2, pattern=pattern, **fields)


def make_model(pattern, sides=(1, 2, 3, 4), dtype=torch.float64, **fields):
    torch.manual_seed(0)
    space = TokenSpace(sides, vocab_size=11, code_channels=5, num_classes=3)
    model = ScaleTransformer(model_config(pattern, **fields), space).to(dtype)
    with torch.no_grad():  # the official initialisation all but closes the gates: open them, or nothing is tested
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def make_batch(model, batch=3, dtype=torch.float64):
    torch.manual_seed(1)
    schedule = model.schedule
    inputs = torch.randn(batch, schedule.num_tokens - schedule.lengths[0], model.space.code_channels, dtype=dtype)
    return torch.arange(batch) % (model.space.num_classes + 1), inputs


def run_split(model, labels, inputs, cuts):
    """Logits of the scales run in the pieces that `cuts` makes, with the state carried from piece to piece."""
    schedule, outputs, state = model.schedule, [], None
    skip = schedule.lengths[0]
    edges = [0, *cuts, schedule.num_scales]
    for first, last in pairwise(edges):
        span = schedule.span(first, last)
        piece = inputs[:, max(span.start - skip, 0) : span.stop - skip]
        logits, state = model(labels, piece, span, state)
        outputs.append(logits)
    return torch.cat(outputs, dim=1)


def close(a, b, dtype):
    torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[dtype] * b.abs().max().item())


def draw_cuts(data, num_scales):
    return sorted(data.draw(st.sets(st.integers(1, num_scales - 1)))) if num_scales > 1 else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("pattern", PATTERNS)
@given(data=st.data())
def test_any_split_with_state_equals_teacher_forcing(pattern, dtype, data):
    sides = data.draw(st.sampled_from(SCHEDULES))
    model = make_model(
        pattern, sides, dtype, shared_adaln=data.draw(st.booleans()), attn_l2_norm=data.draw(st.booleans())
    )
    assert_any_split_equals_the_whole(model, dtype, data)


def assert_any_split_equals_the_whole(model, dtype, data):
    labels, inputs = make_batch(model, dtype=dtype)
    with torch.no_grad():
        whole, _ = model(labels, inputs)
        close(run_split(model, labels, inputs, draw_cuts(data, model.schedule.num_scales)), whole, dtype)


@pytest.mark.parametrize("rule", REPLACEMENTS)
@settings(max_examples=12)
@given(data=st.data())
def test_any_split_of_a_model_with_replaced_layers(rule, data):
    """Every way to name layers, of any base and replacement: the layers are those, and every split is the same."""
    layers = [*MIXERS, *PAIRS]
    base, replacement = data.draw(st.sampled_from(layers)), data.draw(st.sampled_from(layers))
    sides, dtype = data.draw(st.sampled_from(SCHEDULES)), data.draw(st.sampled_from(sorted(TOLERANCE, key=str)))
    model = make_model(
        base, sides, dtype, depth=4, replace=rule, replacement=replacement, shared_adaln=data.draw(st.booleans())
    )
    chosen = replaced_layers(rule, 4)
    for number, block in enumerate(model.blocks):
        names = parse_layer(replacement if number in chosen else base)
        assert [type(mixer) for mixer in block.mixers()] == [mixer_class(name) for name in names]
    assert_any_split_equals_the_whole(model, dtype, data)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=8)
@given(data=st.data())
def test_gradients_through_any_split_equal_teacher_forcing(pattern, data):
    sides = data.draw(st.sampled_from(SCHEDULES))
    model = make_model(pattern, sides, attn_l2_norm=data.draw(st.booleans()))
    labels, inputs = make_batch(model)
    wanted = [inputs.requires_grad_(), *model.parameters()]
    gradients = []
    for cuts in ([], draw_cuts(data, len(sides))):
        logits = run_split(model, labels, inputs, cuts)
        weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
        gradients.append(torch.autograd.grad((logits * weights).sum(), wanted, materialize_grads=True))
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-9)


def contracts():
    """Every text with qk-norm, and attention without it too: it means nothing to the others."""
    for name in MIXERS:
        for norm in (False, True) if issubclass(mixer_class(name), ScaleAttention) else (True,):
            yield from ((text, norm) for text in texts_to_check(name))


@pytest.mark.parametrize(
    ("text", "norm"), list(contracts()), ids=lambda part: {True: "l2", False: "plain"}.get(part, part)
)
def test_the_whole_contract(text, norm):
    """What `mvar check` runs on a user's mixer: see `mvar.checking`."""
    assert [str(finding) for finding in check_mixer(text, model_config(attn_l2_norm=norm)) if finding.faults] == []


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_flows_from_finer_to_coarser(pattern):
    model = make_model(pattern)
    labels, inputs = make_batch(model)
    with torch.no_grad():
        before, _ = model(labels, inputs)
        for scale in range(1, model.schedule.num_scales):
            start = model.schedule.offsets[scale]
            changed = inputs.clone()
            changed[:, start - model.schedule.lengths[0] :] += 1
            after, _ = model(labels, changed)
            assert torch.equal(after[:, :start], before[:, :start])
            assert not torch.allclose(after[:, start:], before[:, start:])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_parameter_gets_a_gradient(pattern):
    model = make_model(pattern)
    labels, inputs = make_batch(model)
    model(labels, inputs)[0].square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_image_does_not_depend_on_its_batch(pattern, dtype):
    """To rounding, because products of other shapes are summed in another order; beside images a million times it."""
    model = make_model(pattern, dtype=dtype)
    labels, inputs = make_batch(model, batch=4, dtype=dtype)
    inputs[1] *= 1e6
    with torch.no_grad():
        whole = run_split(model, labels, inputs, [1, 2, 3])
        for i in range(4):
            alone = run_split(model, labels[i : i + 1], inputs[i : i + 1], [1, 2, 3])
            close(alone, whole[i : i + 1], dtype)
            close(model(labels[i : i + 1], inputs[i : i + 1])[0], whole[i : i + 1], dtype)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_code_path_depends_on_training_mode(pattern):
    model = make_model(pattern)
    labels, inputs = make_batch(model)
    with torch.no_grad():
        assert torch.equal(model.train()(labels, inputs)[0], model.eval()(labels, inputs)[0])


@pytest.mark.parametrize("shared", [False, True], ids=["per-layer", "shared"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_counts_equal_the_analytic_ones(pattern, shared):
    model = make_model(pattern, shared_adaln=shared)
    assert sum(p.numel() for p in model.parameters()) == num_params(model.config, model.space)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_save_and_load(pattern, tmp_path):
    from safetensors.torch import load_file, save_file

    model = make_model(pattern)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = ScaleTransformer(model.config, model.space).double()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    labels, inputs = make_batch(model)
    with torch.no_grad():
        assert torch.equal(other(labels, inputs)[0], model(labels, inputs)[0])


def test_a_state_of_other_scales_is_refused():
    model = make_model("global")
    labels, inputs = make_batch(model)
    _, state = model(labels, inputs[:, :4], model.schedule.span(0, 2))
    with pytest.raises(ValueError, match="the state holds 5"):
        model(labels, inputs[:, 13:], model.schedule.span(3, 4), state)
    with pytest.raises(ValueError, match="state of the coarser scales is missing"):
        model(labels, inputs[:, 13:], model.schedule.span(3, 4))
    with pytest.raises(ValueError, match="3 tokens; the span holds 4"):
        model(labels, inputs[:, :3], model.schedule.span(1, 2), [[None]] * 3)
