"""`runtime.compile`: every layer one graph, compiled once, the same numbers as eager up to rounding."""

import os
import shutil

import pytest
import torch

from mvar.config import MambaConfig, ModelConfig, RuntimeConfig, TokenSpace
from mvar.errors import UserError
from mvar.kernels import compiling
from mvar.registries import MIXERS
from mvar.training.footprint import Saved
from mvar.transformer import ScaleTransformer

SPACE = TokenSpace((1, 2, 3), 16, 4, 3)


def build(pattern, depth=3, drop_path=0.4, **runtime):
    torch.manual_seed(0)
    mamba = MambaConfig(d_state=8, headdim=8)
    config = ModelConfig(
        width=16, depth=depth, num_heads=2, pattern=pattern, attn_l2_norm=True, drop_path=drop_path, mamba=mamba
    )
    return ScaleTransformer(config, SPACE, RuntimeConfig(**runtime)).train()


def step(model, batch=4):
    """Loss and gradients of a step of training."""
    torch.manual_seed(1)
    loss = model(torch.arange(batch) % 3, torch.randn(batch, 13, 4))[0].square().mean()
    return loss.detach(), torch.autograd.grad(loss, [*model.parameters()])


@pytest.fixture
def dynamo(monkeypatch):
    """torch's tracer, with nothing compiled before; back ends of the test's choice."""
    import torch._dynamo as module
    from torch._dynamo.utils import counters

    def fresh(backend="aot_eager"):
        module.reset(), counters.clear(), compiling.compiled.cache_clear()
        monkeypatch.setattr(compiling, "BACKEND", backend)

    fresh()
    module.counters = counters
    module.fresh = fresh
    yield module
    fresh()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(MIXERS.names()), "intra+mamba", "mamba:scan_order=both"])
def test_a_layer_is_one_graph(dynamo, name):
    model = build(name, depth=1)
    x = torch.randn(2, 14, 16, requires_grad=True)
    found = dynamo.explain(model.blocks[0])(x, torch.randn(2, 16), model.schedule.span(), None)
    assert (found.graph_break_count, found.graph_count) == (0, 1), found.break_reasons


@pytest.mark.slow
def test_is_compiled_once_a_kind_of_layer(dynamo):
    """Whatever the rates of stochastic depth; sampling and evaluation compile nothing. Gradients as in eager."""
    pattern = "3*mamba:scan_order=snake 1*window"
    model, wanted = build(pattern, 4, compile=True), step(build(pattern, 4))
    for _ in range(3):
        got = step(model)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        state = None
        for span in model.eval().schedule.steps():
            tokens = torch.randn(2, span.length if span.first else 0, 4)
            _, state = model(torch.arange(2), tokens, span, state)
        model(torch.arange(2), torch.randn(2, 13, 4))
    # the first layer has no stochastic depth, the last is another kind
    assert dynamo.counters["stats"]["unique_graphs"] == 3 and not dynamo.counters["graph_break"]


@pytest.mark.slow
def test_it_keeps_what_is_asked_for(dynamo):
    """And gradients stay what they are."""
    saved, wanted = {}, step(build("intra", 1))
    for kept in ("none", "selective", "full"):
        model = build("intra", 1, compile=True, checkpoint_activations=kept)
        torch.testing.assert_close(step(model), wanted, rtol=1e-4, atol=1e-6)
        count = Saved(model)
        with count.counting():
            model(torch.arange(4) % 3, torch.randn(4, 13, 4))
        saved[kept] = count.total
    assert saved["full"] < 0.7 * saved["selective"] < 0.7 * saved["none"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global", "mamba"])
def test_inductor_on_a_cpu_equals_eager(dynamo, name):
    if not any(map(shutil.which, ("g++", "clang++"))):
        (pytest.fail if os.environ.get("REQUIRE_CXX") else pytest.skip)("no C++ compiler")
    dynamo.fresh("inductor")
    wanted, got = step(build(name, 1, 0.0)), step(build(name, 1, 0.0, compile=True))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)


def chosen_by_a_value(x, span, state=None):
    """What a mixer must not do."""
    return (x if x.sum() > 0 else -x), None


@pytest.mark.slow
def test_what_cannot_be_compiled_is_one_line(dynamo):
    from torch._inductor.exc import InvalidCxxCompiler

    model = build("global", 1, compile=True)
    model.blocks[0].attn.forward = chosen_by_a_value
    with pytest.raises(UserError, match=r"^runtime.compile: a layer cannot be one graph .*; allowed: false") as found:
        step(model)
    assert "\n" not in str(found.value)

    def without_compiler(*_):
        raise InvalidCxxCompiler

    dynamo.fresh(without_compiler)
    with pytest.raises(UserError, match=r"^runtime.compile: true needs a C.. compiler, g.. or clang"):
        step(build("global", 1, compile=True))


def test_by_default_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("mvar.transformer.compiled", lambda function: pytest.fail("compiled"))
    step(build("global", 1))
