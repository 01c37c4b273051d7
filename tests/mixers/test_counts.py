"""What every registered mixer says that it costs, against what it does: FLOPs of each step, state, memory."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvar.checking.counting import count_flops, storages
from mvar.config import MambaConfig, ModelConfig, RuntimeConfig, TokenSpace
from mvar.cost import state_bytes
from mvar.mixers.base import Chosen
from mvar.registries import MIXERS as REGISTERED
from mvar.scales import PATCH_SIDES, ScaleSchedule
from mvar.transformer import ScaleTransformer

MIXERS = sorted(REGISTERED.names())
SCHEDULES = [(1, 2, 3, 4), (2, 3, 5), (4,), (1, 1, 6), (1, 2, 3, 10)]
CONFIG = ModelConfig(depth=3, width=32, num_heads=2, mamba=MambaConfig(d_state=8, headdim=16))


def make_mixer(name, dtype=torch.float32, config=CONFIG):
    torch.manual_seed(0)
    return Chosen.of(config, name).build(config, RuntimeConfig()).to(dtype)


def tokens(span, batch=1, dtype=torch.float32):
    return torch.randn(batch, span.length, CONFIG.width).to(dtype)


@pytest.mark.parametrize("sides", SCHEDULES, ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "l2"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", MIXERS)
def test_flops_of_every_step_are_those_that_torch_counts(name, grad, norm, sides):
    config = CONFIG.model_copy(update={"attn_l2_norm": norm})
    mixer, state = make_mixer(name, config=config), None
    with torch.set_grad_enabled(grad):
        for span in ScaleSchedule(sides).steps():
            counted, (_, state) = count_flops(lambda span=span, state=state: mixer(tokens(span), span, state))
            assert counted == mixer.flops(config, mixer.settings, span)


@pytest.mark.parametrize("sides", SCHEDULES, ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_flops_of_any_span_are_those_that_torch_counts(name, sides):
    schedule, mixer = ScaleSchedule(sides), make_mixer(name)
    for split in range(schedule.num_scales):
        state = None
        for span in (schedule.span(0, split), schedule.span(split)) if split else (schedule.span(),):
            counted, (_, state) = count_flops(lambda span=span, state=state: mixer(tokens(span), span, state))
            assert counted == mixer.flops(CONFIG, mixer.settings, span)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("sides", [s for s in SCHEDULES if len(s) > 1], ids=str)
@pytest.mark.parametrize("name", ["global", "intra", "mamba"])  # of all others the peak: tests of the contract
@torch.no_grad()
def test_state_bytes_are_those_of_its_storage(name, sides, dtype, batch):
    """From the first step on, and exactly: nothing hangs on a view, nothing grows."""
    schedule, mixer, state = ScaleSchedule(sides), make_mixer(name, dtype), None
    expected = batch * mixer.state_bytes(CONFIG, mixer.settings, schedule, dtype.itemsize)
    for span in schedule.steps()[:-1]:
        y, state = mixer(tokens(span, batch, dtype), span, state)
        assert y.dtype == dtype
        assert sum(storages(state).values()) == expected
    _, state = mixer(tokens(schedule.steps()[-1], batch, dtype), schedule.steps()[-1], state)
    assert state is None


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_state_bytes_of_a_model_are_those_of_its_layers(dtype):
    config = CONFIG.model_copy(update={"pattern": "intra+mamba global mamba"})
    space = TokenSpace((1, 2, 3), vocab_size=11, code_channels=5, num_classes=3)
    model, state, labels = ScaleTransformer(config, space).to(dtype), None, torch.arange(2)
    for span in space.schedule.steps()[:-1]:
        inputs = torch.zeros(2, span.length if span.first else 0, 5)
        _, state = model(labels, inputs, span, state)
        held = sum(sum(storages(mixer).values()) for layer in state for mixer in layer.mixers)
        assert held == 2 * state_bytes(config, space, element_bytes=dtype.itemsize)


@torch.no_grad()
def test_keys_and_values_are_allocated_once():
    schedule, mixer = ScaleSchedule((1, 2, 3, 4)), make_mixer("global")
    *steps, last = schedule.steps()
    _, state = mixer(tokens(steps[0]), steps[0])
    held = storages(state)
    assert len(held) == 2 and state.keys.shape[2] == state.values.shape[2] == schedule.num_tokens
    for span in steps[1:]:
        x = tokens(span)
        _, state = mixer(x, span, state)
        assert storages(state) == held
        _, k, v = mixer.project(x)
        assert torch.equal(state.keys[:, :, span.start : span.stop], k)
        assert torch.equal(state.values[:, :, span.start : span.stop], v)
    buffers = state.keys, state.values
    x = tokens(last)
    mixer(x, last, state)
    assert {t.untyped_storage().data_ptr() for t in buffers} == held.keys()
    assert torch.equal(buffers[0][:, :, last.start :], mixer.project(x)[1])  # the last scale's too


class LargestOutput(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.itemsize for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("name", MIXERS)
def test_no_mixer_makes_a_tensor_of_all_pairs(name):
    """Teacher forcing and its gradients at 512 px: nothing of the size L x L, not even over all heads together."""
    span, mixer = ScaleSchedule(PATCH_SIDES["512"]).span(), make_mixer(name)
    with LargestOutput() as largest:
        mixer(tokens(span).requires_grad_(), span)[0].sum().backward()
    assert 0 < largest.elements < span.length**2 / 5


@pytest.mark.parametrize("name", ["global", "intra"])
def test_scores_of_attention_are_those_of_one_scale(name):
    """The fused kernel shows no scores: no tensor exceeds the projections. Without it, those of a scale are made."""
    schedule, mixer = ScaleSchedule(PATCH_SIDES["256"]), make_mixer(name)
    span = schedule.span()
    with torch.no_grad(), LargestOutput() as fused:
        mixer(tokens(span), span)
    assert fused.elements == 3 * span.length * CONFIG.width
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), LargestOutput() as plain:
        mixer(tokens(span), span)
    assert plain.elements == CONFIG.num_heads * max(mixer.score_cells(CONFIG, None, step) for step in schedule.steps())
