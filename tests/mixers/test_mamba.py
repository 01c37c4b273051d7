"""The Mamba-2 mixer: the official numbers, and one result for every split of the scales."""

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mvar.config import MambaConfig, ModelConfig, RuntimeConfig
from mvar.mixers import mamba
from mvar.mixers.base import mixer_class
from mvar.mixers.mamba import Mamba2
from mvar.scales import PATCH_SIDES, ScaleSchedule

GOLDEN = Path(__file__).parents[1] / "golden" / "mamba2_layer"
SMALL = ModelConfig(width=32, num_heads=4, pattern="mamba", mamba=MambaConfig(d_state=8, headdim=16))


def make(config: ModelConfig = SMALL, dtype=torch.float64, seed=0) -> Mamba2:
    torch.manual_seed(seed)
    mixer = Mamba2(config, config.mamba, RuntimeConfig()).to(dtype)
    for name in ("conv1d.weight", "in_proj.weight"):  # larger than at initialisation, so that every part matters
        mixer.get_parameter(name).data.mul_(5)
    return mixer


def golden() -> tuple[Mamba2, dict, dict, dict, dict]:
    facts = json.loads((GOLDEN / "config.json").read_text())
    tensors = [load_file(GOLDEN / f"{name}.safetensors") for name in ("state", "inputs", "outputs")]
    sizes = MambaConfig(**{k: facts[k] for k in ("d_state", "d_conv", "expand", "headdim")})
    mixer = Mamba2(ModelConfig(width=facts["d_model"], num_heads=2), sizes, RuntimeConfig())
    mixer.load_state_dict(tensors[0])
    return mixer, facts, *tensors


def error(a, b) -> float:
    return (a - b).abs().max().item()


def lines(length: int, stop: int | None = None):
    """A schedule whose first scales are `stop` single tokens: any cut of a sequence is a cut between scales."""
    schedule = ScaleSchedule((1,) * length)
    return schedule.span(0, stop)


def test_golden_outputs(monkeypatch):
    mixer, facts, _, inputs, expected = golden()
    noise = facts["noise_fp32_vs_fp64"]
    seen = {}

    def spy(x, dt, *args, **kwargs):
        y, final = real(x, dt, *args, **kwargs | {"need_state": True})
        seen.update(dt=dt, y_scan=y, final_state=final)
        return y, final

    real = mamba.ssd_scan
    monkeypatch.setattr(mamba, "ssd_scan", spy)
    with torch.no_grad():
        out, state = mixer(inputs["u"], lines(facts["seq_len"] + 1, facts["seq_len"]))
    assert error(out, expected["out"]) < 4 * noise["out"]
    assert error(seen["final_state"], expected["final_state"]) < 4 * noise["final_state"]
    assert error(state.ssm, expected["final_state"]) < 4 * noise["final_state"]
    for name in ("dt", "y_scan"):
        torch.testing.assert_close(seen[name], expected[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.conv_tail.mT, expected["conv_state"][..., 1:], rtol=1e-5, atol=1e-6)


def test_golden_prefix_and_continuation():
    mixer, facts, _, inputs, expected = golden()
    length, prefix = facts["seq_len"], facts["prefix_len"]
    schedule = ScaleSchedule((1,) * length)
    with torch.no_grad():
        first, state = mixer(inputs["u"][:, :prefix], schedule.span(0, prefix))
        torch.testing.assert_close(state.ssm, expected["prefix_final_state"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state.conv_tail.mT, expected["prefix_conv_state"][..., 1:], rtol=1e-5, atol=1e-6)
        rest, _ = mixer(inputs["u"][:, prefix:], schedule.span(prefix), state)
    assert error(torch.cat([first, rest], 1), expected["out"]) < 4 * facts["noise_fp32_vs_fp64"]["out"]


def test_golden_gradients():
    mixer, facts, _, inputs, expected = golden()
    noise = facts["noise_fp32_vs_fp64"]
    u = inputs["u"].requires_grad_()
    out, _ = mixer(u, lines(facts["seq_len"]))
    (inputs["w"] * out).sum().backward()
    assert error(u.grad, expected["grad_u"]) < 4 * noise["grad_u"]
    given_names = [key.removeprefix("grad.") for key in expected if key.startswith("grad.")]
    assert {"A_log", "dt_bias", "D", "conv1d.weight", "conv1d.bias", "norm.weight"} <= set(given_names)
    for name in given_names:
        parameter, wanted = mixer.get_parameter(name), expected[f"grad.{name}"]
        limit = 8 * max(noise["grads_rel"][name], torch.finfo(torch.float32).eps)
        assert error(parameter.grad, wanted) < limit * wanted.abs().max(), name


@given(sides=st.lists(st.integers(1, 5), min_size=2, max_size=5), data=st.data())
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_every_split_of_the_scales_gives_the_same(sides, data, dtype, tolerance):
    schedule = ScaleSchedule(tuple(sorted(sides)))
    mixer = make(dtype=dtype)
    x = torch.randn(2, schedule.num_tokens, SMALL.width, dtype=dtype)
    with torch.no_grad():
        expected, nothing = mixer(x, schedule.span())
        cuts = data.draw(st.sets(st.integers(1, schedule.num_scales - 1)))
        bounds, state, outputs = [0, *sorted(cuts), schedule.num_scales], None, []
        for first, last in itertools.pairwise(bounds):
            span = schedule.span(first, last)
            y, state = mixer(x[:, span.start : span.stop], span, state)
            outputs.append(y)
    assert nothing is None and state is None
    assert error(torch.cat(outputs, 1), expected) < tolerance * expected.abs().max()


def test_gradients_flow_through_the_state():
    mixer, schedule = make(), ScaleSchedule((1, 2, 3))
    x = torch.randn(2, schedule.num_tokens, SMALL.width, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, schedule.num_tokens, SMALL.width, dtype=torch.float64)
    parameters = [x, *mixer.parameters()]
    expected = torch.autograd.grad((mixer(x, schedule.span())[0] * weights).sum(), parameters)
    state, outputs = None, []
    for span in schedule.steps():
        y, state = mixer(x[:, span.start : span.stop], span, state)
        outputs.append(y)
    for got, wanted in zip(
        torch.autograd.grad((torch.cat(outputs, 1) * weights).sum(), parameters), expected, strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_token_by_token_definition():
    """The whole mixer against Mamba-2's step, written out: convolution window, recurrence, gated norm."""
    mixer, length = make(), 9
    u = torch.randn(1, length, SMALL.width, dtype=torch.float64)
    sizes, n = mixer.sizes, SMALL.mamba.d_state
    window = torch.zeros(sizes.channels, 4, dtype=torch.float64)
    h = torch.zeros(sizes.heads, SMALL.mamba.headdim, n, dtype=torch.float64)
    with torch.no_grad():
        got, _ = mixer(u, lines(length))
        for t in range(length):
            z, xbc, dt = (mixer.in_proj.weight @ u[0, t]).split([sizes.inner, sizes.channels, sizes.heads])
            window = torch.cat([window[:, 1:], xbc[:, None]], 1)
            xbc = F.silu((window * mixer.conv1d.weight[:, 0]).sum(1) + mixer.conv1d.bias)
            x, b, c = xbc.split([sizes.inner, n, n])
            x = x.view(sizes.heads, -1)
            dt = F.softplus(dt + mixer.dt_bias)
            decay = torch.exp(-dt * torch.exp(mixer.A_log))
            h = decay[:, None, None] * h + (dt[:, None] * x)[..., None] * b
            y = (h @ c + mixer.D[:, None] * x).flatten() * F.silu(z)
            y = y * torch.rsqrt(y.pow(2).mean() + 1e-5) * mixer.norm.weight
            torch.testing.assert_close(got[0, t], mixer.out_proj.weight @ y, rtol=1e-10, atol=1e-12)


def test_causal():
    mixer, schedule = make(), ScaleSchedule((1, 2, 4))
    x = torch.randn(1, schedule.num_tokens, SMALL.width, dtype=torch.float64, requires_grad=True)
    y, _ = mixer(x, schedule.span())
    (gradient,) = torch.autograd.grad(y[0, 7].sum(), x)
    assert gradient[0, 8:].abs().max() == 0
    assert (gradient[0, :8].abs().amax(-1) > 0).all()


def test_batch_invariance():
    mixer, schedule = make(), ScaleSchedule((1, 2, 3, 4))
    x = torch.randn(5, schedule.num_tokens, SMALL.width, dtype=torch.float64)
    with torch.no_grad():
        together, _ = mixer(x, schedule.span())
        alone = torch.cat([mixer(x[i : i + 1], schedule.span())[0] for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-13)


def test_training_mode_changes_nothing():
    mixer, schedule = make(), ScaleSchedule((1, 2, 3))
    x = torch.randn(1, schedule.num_tokens, SMALL.width, dtype=torch.float64)
    assert torch.equal(mixer.train()(x, schedule.span())[0], mixer.eval()(x, schedule.span())[0])


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_close_to_fp32(autocast):
    mixer, schedule = make(dtype=torch.float32), ScaleSchedule((1, 2, 3, 4))
    x = torch.randn(2, schedule.num_tokens, SMALL.width)
    expected, _ = mixer(x, schedule.span())
    expected.sum().backward()
    gradients = {k: p.grad.clone() for k, p in mixer.named_parameters()}
    mixer.zero_grad()
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = mixer(x, schedule.span())
    else:
        mixer, x = mixer.bfloat16(), x.bfloat16()
        y, _ = mixer(x, schedule.span())
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert error(y.float(), expected) < 3e-2 * expected.abs().max()
    for name, parameter in mixer.named_parameters():
        assert error(parameter.grad.float(), gradients[name]) < 6e-2 * gradients[name].abs().max(), name


def test_bf16_state_keeps_fp32():
    mixer, schedule = make(dtype=torch.bfloat16), ScaleSchedule((1, 2))
    _, state = mixer(torch.randn(1, 1, SMALL.width, dtype=torch.bfloat16), schedule.span(0, 1))
    assert state.ssm.dtype == torch.float32 and state.conv_tail.dtype == torch.bfloat16


@pytest.mark.parametrize("sides", [(1, 1), (1, 2, 3), (4, 5, 6)])
@pytest.mark.parametrize("element_bytes, dtype", [(4, torch.float32), (2, torch.bfloat16)])
def test_state_bytes_are_constant_in_length(sides, element_bytes, dtype):
    schedule = ScaleSchedule(sides)
    mixer, span = make(dtype=dtype), schedule.span(0, schedule.num_scales - 1)
    _, state = mixer(torch.randn(1, span.length, SMALL.width, dtype=dtype), span)
    held = sum(t.untyped_storage().nbytes() for t in (state.conv_tail, state.ssm))
    assert held == Mamba2.state_bytes(SMALL, SMALL.mamba, schedule, element_bytes)


@pytest.mark.parametrize(
    "width, d_state, d_conv, expand, headdim", [(32, 8, 4, 2, 16), (48, 5, 3, 1, 8), (64, 64, 2, 3, 64)]
)
def test_counts_equal_the_parameters(width, d_state, d_conv, expand, headdim):
    sizes = MambaConfig(d_state=d_state, d_conv=d_conv, expand=expand, headdim=headdim)
    config = ModelConfig(width=width, num_heads=1, pattern="mamba", mamba=sizes)
    mixer = Mamba2(config, config.mamba, RuntimeConfig())
    assert sum(p.numel() for p in mixer.parameters()) == Mamba2.num_params(config, config.mamba)


def test_flops_equal_the_counted_products():
    from torch.utils.flop_counter import FlopCounterMode

    schedule, config = ScaleSchedule((1, 2, 3, 10)), SMALL
    mixer, state = make(dtype=torch.float32), None
    for span in schedule.steps():
        with FlopCounterMode(display=False) as counter:
            _, state = mixer(torch.randn(1, span.length, config.width), span, state)
        convolution = (
            2 * config.mamba.d_conv * mixer.sizes.channels * span.length
        )  # done without a product torch counts
        assert counter.get_total_flops() + convolution == Mamba2.flops(config, config.mamba, span)
    assert Mamba2.score_cells(config, config.mamba, schedule.span()) == 0


def test_initialisation_is_the_official_one():
    config = ModelConfig(width=256, num_heads=4, pattern="mamba", mamba=MambaConfig(headdim=8))
    torch.manual_seed(0)
    mixer = Mamba2(config, config.mamba, RuntimeConfig())
    for parameter in mixer.parameters():
        parameter.data.fill_(float("nan"))
    mixer.init_weights(0.036)
    for weight, std in ((mixer.in_proj.weight, 0.036), (mixer.out_proj.weight, 0.036), (mixer.conv1d.weight, 0.02)):
        assert abs(weight.std().item() / std - 1) < 0.05
    assert mixer.conv1d.bias.eq(0).all() and mixer.D.eq(1).all() and mixer.norm.weight.eq(1).all()
    decay, step = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert 1 <= decay.min() < 3 and 14 < decay.max() <= 16
    assert 0.999e-3 <= step.min() < 2e-3 and 0.05 < step.max() <= 0.1001
    assert abs(step.log().mean() + 4.605) < 0.5  # log-uniform: its mean is that of log 1e-3 and log 0.1


def test_registered_with_official_names():
    assert mixer_class("mamba") is Mamba2
    with torch.device("meta"):
        keys = {
            k: tuple(v.shape)
            for k, v in Mamba2(ModelConfig(width=1024, num_heads=16), MambaConfig(), RuntimeConfig())
            .state_dict()
            .items()
        }
    assert keys == {
        "dt_bias": (32,),
        "A_log": (32,),
        "D": (32,),
        "in_proj.weight": (4256, 1024),
        "conv1d.weight": (2176, 1, 4),
        "conv1d.bias": (2176,),
        "norm.weight": (2048,),
        "out_proj.weight": (1024, 2048),
    }


@pytest.mark.parametrize("name", ["256", "512"])
def test_forward_at_real_schedules(name):
    schedule = ScaleSchedule(PATCH_SIDES[name])
    mixer, x = make(dtype=torch.float32), torch.randn(1, schedule.num_tokens, SMALL.width)
    with torch.no_grad():
        expected, _ = mixer(x, schedule.span())
        state, outputs = None, []
        for span in schedule.steps():
            y, state = mixer(x[:, span.start : span.stop], span, state)
            outputs.append(y)
    assert error(torch.cat(outputs, 1), expected) < 1e-5 * expected.abs().max()
