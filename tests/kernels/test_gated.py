"""Gated linear attention and the gated delta rule in chunks, against the recurrences that they compute."""

import pytest
import torch
import torch.nn.functional as F
from fla_core import reference
from hypothesis import given
from hypothesis import strategies as st

from mvar.kernels import gated_delta, gated_linear
from mvar.kernels.gated_delta import gated_delta_rule
from mvar.kernels.gated_linear import gated_linear_attention

HEADS, KEYS, VALUES = 2, 3, 5


def draw(length, rate, has_state, alike=0.0, seed=0):
    """q, k, v, decays by channel, beta, state; `rate` is a token's largest loss, `alike` draws the keys together."""
    torch.manual_seed(seed)
    q, k = torch.randn(2, 2, length, HEADS, KEYS, dtype=torch.float64)
    v = torch.randn(2, length, HEADS, VALUES, dtype=torch.float64)
    log_decay = -torch.rand_like(q) * rate
    state = torch.randn(2, HEADS, KEYS, VALUES, dtype=torch.float64) if has_state else None
    return q, F.normalize(k + alike, dim=-1), v, log_decay, torch.rand_like(v[..., 0]), state


def recurrence(q, k, v, log_decay, beta=None, state=None):
    """Either of the two, token by token: with `beta` what the key holds gives way."""
    held = q.new_zeros(*q.shape[::2], KEYS, VALUES) if state is None else state
    outputs = []
    for t in range(q.shape[1]):
        decay = log_decay[:, t].exp()
        held = held * (decay[..., None] if beta is None else decay[..., None, None])
        write = v[:, t]
        if beta is not None:
            write = beta[:, t, :, None] * (write - (held * k[:, t, :, :, None]).sum(-2))
        held = held + k[:, t, :, :, None] * write[..., None, :]
        outputs.append((held * q[:, t, :, :, None]).sum(-2))
    return torch.stack(outputs, 1), held


def error(found, wanted):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@given(
    length=st.integers(1, 150), rate=st.sampled_from([0.01, 1.0, 20.0]), has_state=st.booleans(),
    alike=st.sampled_from([0.0, 30.0]),
)  # fmt: skip
def test_both_are_their_recurrences(dtype, tolerance, length, rate, has_state, alike):
    """At every length, kept for long or at once forgotten, with keys that are nearly one."""
    q, k, v, log_decay, beta, state = draw(length, rate, has_state, alike)

    def cast(*tensors):
        return [t if t is None else t.to(dtype) for t in tensors]

    wanted = recurrence(q, k, v, log_decay.clamp(min=gated_linear.MIN_LOG_DECAY), None, state)
    assert error(gated_linear_attention(*cast(q, k, v, log_decay, state)), wanted) < tolerance
    log_decay = log_decay[..., 0]
    wanted = recurrence(q, k, v, log_decay, beta, state)
    assert error(gated_delta_rule(*cast(q, k, v, log_decay, beta, state)), wanted) < tolerance


@pytest.mark.parametrize("has_state", [False, True], ids=["from zeros", "from a state"])
@torch.no_grad()
def test_both_are_those_of_fla_core(has_state):
    """Which computes in fp32."""
    q, k, v, log_decay, beta, state = draw(90, 1.0, has_state)
    scaled = q * KEYS**-0.5
    theirs = reference("gla", "naive_recurrent_gla")(q, k, v, log_decay, state, output_final_state=True)
    assert error(gated_linear_attention(scaled, k, v, log_decay, state), theirs) < 1e-5
    theirs = reference("gated_delta_rule", "naive_recurrent_gated_delta_rule")(
        q, k, v, beta, log_decay[..., 0], initial_state=state, output_final_state=True
    )
    assert error(gated_delta_rule(scaled, k, v, log_decay[..., 0], beta, state), theirs) < 1e-5


@pytest.mark.parametrize("rule", [False, True], ids=["gla", "gdn"])
def test_gradients_are_those_of_the_recurrence(rule):
    q, k, v, log_decay, beta, state = draw(70, 1.0, True)
    leaves = [q, k, v, log_decay[..., 0], beta, state] if rule else [q, k, v, log_decay, state]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    ours = gated_delta_rule(*leaves) if rule else gated_linear_attention(*leaves)
    theirs = recurrence(*leaves) if rule else recurrence(*leaves[:4], None, leaves[4])
    weights = [torch.randn_like(part) for part in theirs]
    found, wanted = (torch.autograd.grad(outputs, leaves, weights) for outputs in (ours, theirs))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_what_forgets_at_once_has_finite_gradients():
    q, k, v, log_decay, beta, _ = (
        None if part is None else part.float().requires_grad_() for part in draw(64, 1e4, False)
    )
    assert all(part is not None for part in (q, k, v, log_decay, beta))
    loss = (
        gated_linear_attention(q, k, v, log_decay)[0].sum()
        + gated_delta_rule(q, k, v, log_decay[..., 0], beta)[0].sum()
    )
    assert all(bool(part.isfinite().all()) for part in torch.autograd.grad(loss, [q, k, v, log_decay, beta]))


def test_flops_grow_with_the_length_and_not_with_its_square():
    for count in (gated_linear.gated_linear_flops, gated_delta.gated_delta_flops):
        short, long = (count(length, HEADS, KEYS, VALUES, has_state=True, need_state=True) for length in (640, 6400))
        assert long == 10 * short
