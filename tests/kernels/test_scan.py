"""The chunked scan against the recurrence that it computes."""

from functools import partial
from itertools import pairwise

import fla_core
import pytest
import torch
import torch.nn.functional as F
from fake_gpu import Kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mvar.errors import UserError
from mvar.kernels import scan, scan_chunks
from mvar.kernels.scan import ssd_flops, ssd_scan

NAMES = ("x", "dt", "A", "B", "C", "D", "state")
MAX_LENGTH = 700
# The shortest length of three chunks or more for every chunk size that is chosen by itself.
LENGTH_OF_SIZE = {
    size: next(n for n in range(3 * size, MAX_LENGTH) if scan_chunks.choose_chunk_size(n) == size)
    for size in scan_chunks._NEAR_CHUNK_SIZES
}


def recurrence(x, dt, A, B, C, D=None, state=None) -> tuple[Tensor, Tensor]:
    """The definition, token by token: the outputs, and the state that the last token leaves."""
    y, states = recurrence_with_states(x, dt, A, B, C, D, state)
    return y, states[-1]


def recurrence_with_states(x, dt, A, B, C, D=None, state=None) -> tuple[Tensor, Tensor]:
    """The outputs, and the states `(L, B, H, P, N)` that each token leaves: the answers for every prefix."""
    h = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[2]) if state is None else state
    decays = torch.exp(dt * A)[..., None, None].unbind(1)
    written = torch.einsum("blh,blhp,bln->lbhpn", dt, x, B)
    states = [h := torch.addcmul(write, decay, h) for decay, write in zip(decays, written, strict=True)]
    states = torch.stack(states)
    y = torch.einsum("lbhpn,bln->blhp", states, C)
    return (y if D is None else y + D[:, None] * x), states


def draw(batch, length, heads, headdim, d_state, seed=0, dtype=torch.float64, step=0.1) -> dict[str, Tensor]:
    """Random inputs; `step` scales dt, and with it how much a head forgets at each token (A is in [-16, -1])."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "x": normal(batch, length, heads, headdim),
        "dt": F.softplus(normal(batch, length, heads)) * step,
        "A": -1 - 15 * torch.rand(heads, generator=g, dtype=torch.float64).to(dtype),
        "B": normal(batch, length, d_state),
        "C": normal(batch, length, d_state),
        "D": normal(heads),
        "state": normal(batch, heads, headdim, d_state),
    }


def gradients(scan, inputs: dict[str, Tensor], weights: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Gradients of a weighted sum of the outputs: of y, or of both."""
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    outputs = scan(**leaves)
    loss = torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def prefix(inputs: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    return {k: v[:, :length] if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()}


@pytest.mark.parametrize("chunk", [None, scan_chunks.CHUNK_SIZE], ids=["chosen", "fixed"])
@pytest.mark.parametrize("optional, step", [({"D", "state"}, 0.01), (set(), 0.1)])
def test_equals_the_recurrence_at_every_length(chunk, optional, step):
    """Outputs and final state, multiples of the chunk or not, at the size that is chosen for a length and at one."""
    inputs = draw(2, MAX_LENGTH, 2, 3, 4, step=step)
    inputs = {k: v for k, v in inputs.items() if k not in {"D", "state"} - optional}
    expected, states = recurrence_with_states(**inputs)
    for length in range(1, MAX_LENGTH + 1):
        y, final = ssd_scan(**prefix(inputs, length), chunk_size=chunk)
        torch.testing.assert_close(y, expected[:, :length], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(final, states[length - 1], rtol=1e-10, atol=1e-10)


@settings(max_examples=100)
@given(
    length=st.one_of(st.integers(1, 12), st.integers(1, MAX_LENGTH)),
    chunk=st.one_of(st.sampled_from([1, 3, 1000]), st.integers(1, 200)),
    batch=st.integers(1, 3),
    optional=st.sets(st.sampled_from(["D", "state"])),
    step=st.sampled_from([0.01, 0.1, 10.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_recurrence_whatever_the_chunk(length, chunk, batch, optional, step, seed):
    inputs = draw(batch, min(length, 60 * chunk), 2, 3, 4, seed, step=step)
    inputs = {k: v for k, v in inputs.items() if k not in {"D", "state"} - optional}
    for got, expected in zip(ssd_scan(**inputs, chunk_size=chunk), recurrence(**inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", sorted({1, 2, 63, 64, 65, 200, 680, *LENGTH_OF_SIZE.values()}))
@pytest.mark.parametrize("step", [0.01, 10.0])  # with 0.01 a state outlives a chunk, with 10 not a token
def test_gradients_equal_the_recurrence(length, step):
    inputs = draw(2, length, 2, 3, 4, step=step)
    g = torch.Generator().manual_seed(1)
    weights = tuple(torch.randn(o.shape, generator=g, dtype=torch.float64) for o in recurrence(**inputs))
    expected = gradients(recurrence, inputs, weights)
    for name, got in gradients(ssd_scan, inputs, weights).items():
        assert relative(got, expected[name]) < 1e-10 or (got - expected[name]).abs().max() < 1e-12, name


@pytest.mark.parametrize("optional", [set(), {"D", "state"}])
@pytest.mark.parametrize("length", [1, 64, 150])
def test_the_reference_equals_the_recurrence(length, optional):
    """What is compiled: outputs, final state and gradients, also where a step forgets all that was."""
    for step in (0.01, 10.0):
        inputs = {k: v for k, v in draw(2, length, 2, 3, 4, step=step).items() if k not in {"D", "state"} - optional}
        plain = partial(ssd_scan, backend="plain")
        expected = recurrence(**inputs)
        torch.testing.assert_close(plain(**inputs), expected, rtol=1e-10, atol=1e-10)
        weights = tuple(torch.sin(torch.arange(o.numel(), dtype=o.dtype)).view_as(o) for o in expected)
        got, expected = gradients(plain, inputs, weights), gradients(recurrence, inputs, weights)
        for name in inputs:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("optional", [(), ("D",), ("state",), ("D", "state")])
@pytest.mark.parametrize("length, chunk", [(1, 4), (3, 4), (5, 2)])
def test_gradcheck(length, chunk, optional):
    inputs = draw(1, length, 2, 2, 2)
    names = [n for n in NAMES if n not in {"D", "state"} - set(optional)]
    leaves = [inputs[n].requires_grad_() for n in names]
    scan = lambda *tensors: ssd_scan(**dict(zip(names, tensors, strict=True)), chunk_size=chunk)  # noqa: E731
    assert torch.autograd.gradcheck(scan, leaves)


@pytest.mark.parametrize("length", [LENGTH_OF_SIZE[68], 193, 680])
def test_gradcheck_at_the_chosen_chunk(length):
    """Along a random direction of each input: element by element it would be thousands of scans."""
    leaves = [v.requires_grad_() for v in draw(1, length, 2, 2, 2).values()]
    assert torch.autograd.gradcheck(ssd_scan, leaves, fast_mode=True)


def test_gradcheck_of_the_output_alone():
    leaves = [v.requires_grad_() for v in draw(1, 5, 2, 2, 2).values()]
    assert torch.autograd.gradcheck(lambda *t: ssd_scan(*t, chunk_size=2, need_state=False)[0], leaves)
    assert torch.autograd.gradcheck(lambda *t: ssd_scan(*t, chunk_size=2)[1], leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [1.0, 100.0, 1e4])
def test_stiff_decay(dtype, step):
    """Steps that forget everything: exp underflows, and so would any formula that divides by it."""
    inputs = draw(2, 150, 3, 4, 5, step=step)
    expected = recurrence(**inputs)
    weights = tuple(torch.ones_like(o) for o in expected)
    gradient = gradients(recurrence, inputs, weights)
    rounded = {k: v.to(dtype) for k, v in inputs.items()}
    for got, wanted in zip(ssd_scan(**rounded), expected, strict=True):
        assert relative(got, wanted) < (1e-10 if dtype == torch.float64 else 1e-5)
    # fp32 rounds the sum of a chunk's exponents, which reaches 64 * 16 here; a decay's gradient sees that undiluted.
    tolerance = 1e-10 if dtype == torch.float64 else 64 * 16 * torch.finfo(dtype).eps
    for name, got in gradients(ssd_scan, rounded, tuple(w.to(dtype) for w in weights)).items():
        assert relative(got, gradient[name]) < tolerance or gradient[name].abs().max() < 1e-20, name
        assert got.isfinite().all()


def test_gradient_of_a_stiff_head_is_not_rounding():
    """The decay's gradient is tiny under a stiff decay; fp32 must still have its digits, not others' rounding."""
    inputs = draw(1, 128, 1, 8, 8, step=1.0)
    inputs["A"].fill_(-12.0)
    inputs["dt"] = 0.5 + inputs["dt"]  # every step forgets all but exp(-6)
    weights = tuple(torch.ones_like(o) for o in recurrence(**inputs))
    expected = gradients(recurrence, inputs, weights)["A"]
    got = gradients(ssd_scan, {k: v.float() for k, v in inputs.items()}, tuple(w.float() for w in weights))["A"]
    assert relative(got, expected) < 1e-5


@given(length=st.integers(2, 200), cuts=st.sets(st.integers(1, 199), max_size=6), seed=st.integers(0, 99))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_split_anywhere(dtype, tolerance, length, cuts, seed):
    inputs = draw(2, length, 2, 3, 4, seed, dtype)
    whole, final = ssd_scan(**inputs)
    bounds = [0, *sorted(c for c in cuts if c < length), length]
    state, outputs = inputs.pop("state"), []
    for start, stop in pairwise(bounds):
        part = {k: v[:, start:stop] if v.dim() > 1 else v for k, v in inputs.items()}
        y, state = ssd_scan(**part, state=state)
        outputs.append(y)
    assert relative(torch.cat(outputs, 1), whole) < tolerance
    assert relative(state, final) < tolerance


@pytest.mark.parametrize("step", [0.01, 0.1, 1.0])
def test_fp32_is_close_to_fp64(step):
    inputs = draw(1, 680, 2, 16, 16, step=step)
    expected = ssd_scan(**inputs)
    weights = tuple(torch.ones_like(o) for o in expected)
    single = {k: v.float() for k, v in inputs.items()}
    for got, wanted in zip(ssd_scan(**single), expected, strict=True):
        assert got.dtype == torch.float32
        assert relative(got, wanted) < 1e-5
    gradient = gradients(ssd_scan, inputs, weights)
    for name, got in gradients(ssd_scan, single, tuple(w.float() for w in weights)).items():
        assert relative(got, gradient[name]) < 2e-5, name


def test_bf16_computes_in_fp32():
    """bf16 inputs are rounded once; the result is that of fp32 on the rounded inputs, to the rounding of the output."""
    inputs = draw(2, 150, 2, 8, 8, dtype=torch.float32)
    rounded = {k: v.bfloat16() if k in ("x", "B", "C") else v for k, v in inputs.items()}
    widened = {k: v.float() for k, v in rounded.items()}
    weights = torch.randn_like(inputs["x"]), torch.randn_like(inputs["state"])
    y, final = ssd_scan(**rounded)
    expected_y, expected_final = ssd_scan(**widened)
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    torch.testing.assert_close(y, expected_y.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(final, expected_final, rtol=0, atol=0)
    expected = gradients(ssd_scan, widened, weights)
    for name, got in gradients(ssd_scan, rounded, weights).items():
        assert got.dtype == rounded[name].dtype
        assert relative(got.float(), expected[name]) < 2e-2, name


def test_autocast_does_not_reach_the_arithmetic():
    inputs = draw(1, 70, 2, 8, 8, dtype=torch.float32)
    expected = ssd_scan(**inputs)
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y, final = ssd_scan(**leaves)
        (y.sum() + final.sum()).backward()
    assert torch.equal(y, expected[0]) and torch.equal(final, expected[1])
    gradient = gradients(ssd_scan, inputs, tuple(torch.ones_like(o) for o in expected))
    assert all(torch.equal(leaves[k].grad, gradient[k]) for k in NAMES)


@pytest.mark.parametrize("strided", ["x", "dt", "B", "dy"])
def test_strides_do_not_matter(strided):
    inputs = draw(2, 70, 3, 4, 5)
    weights = torch.randn_like(inputs["x"]), torch.randn_like(inputs["state"])
    expected = gradients(ssd_scan, inputs, weights)
    wide = lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]].transpose(0, 1).contiguous().transpose(0, 1)  # noqa: E731
    if strided == "dy":
        weights = wide(weights[0]), weights[1]
    else:
        inputs[strided] = wide(inputs[strided])
    got = gradients(ssd_scan, inputs, weights)
    for name in NAMES:
        torch.testing.assert_close(got[name], expected[name])


def test_inputs_are_left_alone():
    inputs = draw(1, 70, 2, 4, 4)
    before = {k: v.clone() for k, v in inputs.items()}
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    y, final = ssd_scan(**leaves)
    loss = y.sum() + final.sum()
    first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(leaves.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(inputs[k], before[k]) for k in NAMES)


def test_no_grad_gives_the_same():
    inputs = draw(2, 130, 2, 4, 4)
    with torch.no_grad():
        expected = ssd_scan(**inputs)
    for got, wanted in zip(ssd_scan(**inputs), expected, strict=True):
        assert torch.equal(got, wanted)
    assert ssd_scan(**inputs, need_state=False)[1] is None


@pytest.mark.parametrize("has_state, need_state", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("length", [1, 30, 64, 136, 150])
def test_flops_are_those_of_the_products(length, has_state, need_state):
    from torch.utils.flop_counter import FlopCounterMode

    inputs = draw(1, length, 2, 8, 4)
    if not has_state:
        del inputs["state"]
    with FlopCounterMode(display=False) as counter:
        ssd_scan(**inputs, need_state=need_state)
    assert counter.get_total_flops() == ssd_flops(length, 2, 8, 4, has_state=has_state, need_state=need_state)


@pytest.mark.parametrize("batch, length, chunk", [(5, 40, 8), (3, 41, 8), (7, 8, 8)])
@pytest.mark.parametrize("elements", [1, 200, 1000, 10**9])
@pytest.mark.parametrize("has_state, need_state", [(False, False), (True, False), (False, True), (True, True)])
def test_grouping_changes_nothing(monkeypatch, batch, length, chunk, elements, has_state, need_state):
    """However many sequences and chunks are worked on at once, with or without a state before or after them."""
    inputs = draw(batch, length, 2, 3, 4)
    if not has_state:
        del inputs["state"]
    g = torch.Generator().manual_seed(1)
    count = 1 + need_state  # outputs: y, the final state
    reference = lambda **tensors: recurrence(**tensors)[:count]  # noqa: E731
    weights = tuple(torch.randn(o.shape, generator=g, dtype=torch.float64) for o in reference(**inputs))
    expected = gradients(reference, inputs, weights)
    monkeypatch.setattr(scan_chunks, "_BLOCK_ELEMENTS_CPU", elements)
    scan = lambda **tensors: ssd_scan(**tensors, chunk_size=chunk, need_state=need_state)[:count]  # noqa: E731
    for got, wanted in zip(scan(**inputs), reference(**inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    for name, got in gradients(scan, inputs, weights).items():
        assert relative(got, expected[name]) < 1e-10, name


def test_step_of_zero():
    """dt = 0 leaves the state alone, and its gradient is that of the limit."""
    inputs = draw(1, 9, 2, 3, 4)
    inputs["dt"][:, 3:5] = 0
    weights = tuple(torch.ones_like(o) for o in recurrence(**inputs))
    expected = gradients(recurrence, inputs, weights)
    for name, got in gradients(ssd_scan, inputs, weights).items():
        assert relative(got, expected[name]) < 1e-10, name


def test_state_alone_may_be_what_is_used():
    """No gradient reaches the output: only the final state's does, and the other way round."""
    inputs = draw(2, 20, 2, 3, 4)
    for chosen in (0, 1):
        got, expected = (
            torch.autograd.grad(
                scan(**{k: v.requires_grad_() for k, v in inputs.items()})[chosen].sum(),
                [v for k, v in inputs.items() if k != ("state" if chosen == 0 else "D")],
                allow_unused=True,
            )
            for scan in (lambda **t: ssd_scan(**t, chunk_size=6), recurrence)
        )
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def test_unknown_backend():
    with pytest.raises(UserError, match="scan_backend: 'tritn' is unknown"):
        ssd_scan(**draw(1, 3, 1, 2, 2), backend="tritn")


def test_forced_backend_that_cannot_run_here():
    with pytest.raises(UserError, match=r"'mamba_ssm' cannot run torch\.float64 on cpu"):
        ssd_scan(**draw(1, 3, 1, 2, 2), backend="mamba_ssm")


class OnGpu:
    is_cuda, dtype, device = True, torch.float32, torch.device("cuda")


@pytest.mark.parametrize("name", ["mamba_ssm", "fla"])
def test_forced_backend_that_is_missing(name):
    with Kernels("mamba_chunk_scan_combined", "chunk_simple_gla"):
        with pytest.raises(UserError, match=f"'{name}' is not installed; allowed: pip install ") as found:
            scan.choose_backend(name, OnGpu())
        assert "\n" not in str(found.value)


def test_auto_takes_what_is_there_and_knows_why():
    both = ("mamba_chunk_scan_combined", "chunk_simple_gla")
    for missing, name, why in (
        ((), "mamba_ssm", "it is installed"),
        (both[:1], "fla", "mamba_ssm not installed"),
        (both, "torch", "neither mamba_ssm nor fla is installed; faster: pip install fla-core"),
    ):
        with Kernels(*missing):
            assert scan.choose_backend("auto", OnGpu()) == (name, why)
            assert scan.choose_backend("auto", torch.empty(0)).name == "torch"
            assert scan.choose_backend("torch", OnGpu()).name == "torch"


def linear_attention(q, k, v, g, scale, initial_state=None, output_final_state=False, state_v_first=False):
    """fla-core's own reference, with the arguments of its kernel."""
    assert state_v_first
    state = None if initial_state is None else initial_state.mT
    y, final = fla_core.reference("simple_gla", "naive_recurrent_simple_gla")(q, k, v, g, scale, state)
    return y, final.mT if output_final_state else None


def mamba_scan(x, dt, A, B, C, chunk_size, D=None, initial_states=None, return_final_states=False):
    """The recurrence, with the arguments of mamba-ssm's kernel."""
    assert B.shape[2] == C.shape[2] == 1 and return_final_states
    return recurrence(x, dt, A, B[:, :, 0], C[:, :, 0], D, initial_states)


@pytest.mark.parametrize("optional", [set(), {"D", "state"}])
@pytest.mark.parametrize("name, kernel", [("mamba_ssm", mamba_scan), ("fla", linear_attention)])
def test_packages_kernels_are_given_what_they_want(monkeypatch, name, kernel, optional):
    """Arguments and results, with a stand-in that has the kernel's signature and computes what it does."""
    found = {"mamba_ssm": "mamba_ssm_scan", "fla": "fla_scan"}[name]
    monkeypatch.setattr(f"mvar.kernels.optional.{found}", lambda: kernel)
    monkeypatch.setattr(scan, "choose_backend", lambda backend, x: scan.Choice(name))
    inputs = draw(2, 20, 2, 3, 4, dtype=torch.float32)
    inputs = {k: v for k, v in inputs.items() if k not in {"D", "state"} - optional}
    for got, expected in zip(ssd_scan(**inputs), recurrence(**inputs), strict=True):
        torch.testing.assert_close(got, expected)
