"""Cuts in a mixer, against a dense masked softmax; the contract's own checks are those of `mvar.checking`."""

from typing import NamedTuple

import pytest
import torch

from mvar.config import MambaConfig, ModelConfig, RuntimeConfig
from mvar.kernels.attention import Severed, attend, attend_chosen
from mvar.mixers.base import Chosen, mixer_class
from mvar.mixers.cutting import editing_output, editing_state, emptied, map_tensors, severing
from mvar.mixers.global_attention import KeyValueState
from mvar.registries import MIXERS
from mvar.scales import ScaleSchedule

SCHEDULE = ScaleSchedule((1, 2, 3))
LENGTH, HEADS = SCHEDULE.num_tokens, 2


def tensors(count=3, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, HEADS, LENGTH, 4, dtype=torch.float64) for _ in range(count)]


def some_pairs(heads=HEADS):
    return torch.rand(heads, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.5


def allowed(reach):
    levels = torch.tensor(SCHEDULE.levels)
    back = levels[:, None] - levels
    return (back >= 0) & (back < (reach or SCHEDULE.num_scales))


def dense(q, k, v, mask):
    weights = (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)  # no key left: nothing
    return weights @ v


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("reach", [None, 1, 2])
def test_pairs_are_cut_as_a_masked_softmax_cuts_them(reach, heads):
    q, k, v = tensors()
    pairs = some_pairs(heads)
    pairs[:, 3] = True  # a query that has no key left
    found = attend(q, k, v, SCHEDULE.span(), reach=reach, severed=Severed(pairs))
    expected = dense(q, k, v, ~pairs & allowed(reach))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reach", [None, 1, 2])
def test_where_nothing_is_cut_the_bytes_are_the_same(reach):
    q, k, v = tensors()
    plain = attend(q, k, v, SCHEDULE.span(), reach=reach)
    pairs = torch.zeros(1, LENGTH, LENGTH, dtype=torch.bool)
    assert torch.equal(attend(q, k, v, SCHEDULE.span(), reach=reach, severed=Severed(pairs)), plain)
    pairs[:, 9] = True  # of the last scale
    cut = attend(q, k, v, SCHEDULE.span(), reach=reach, severed=Severed(pairs))
    assert torch.equal(cut[:, :, :5], plain[:, :, :5]) and not torch.equal(cut, plain)


@pytest.mark.parametrize("reach", [None, 1, 2])
def test_cut_pairs_see_what_stands_in(reach):
    q, k, v, other_k, other_v = tensors(5)

    def stand_in(k, v, first):
        return (t[:1, :, first : first + k.shape[2]] for t in (other_k, other_v))  # one for the whole batch

    pairs = some_pairs()
    found = attend(q, k, v, SCHEDULE.span(), reach=reach, severed=Severed(pairs, lambda *a: tuple(stand_in(*a))))
    scores = torch.where(pairs, q @ other_k[:1].mT, q @ k.mT)
    weights = scores.masked_fill(~allowed(reach), -torch.inf).softmax(-1)
    expected = (weights * ~pairs) @ v + (weights * pairs) @ other_v[:1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    itself = Severed(pairs, lambda k, v, first: (k, v))
    plain = attend(q, k, v, SCHEDULE.span(), reach=reach)
    again = attend(q, k, v, SCHEDULE.span(), reach=reach, severed=itself)
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("instead", [False, True])
def test_pairs_of_chosen_keys_are_cut_as_of_all(instead):
    """Each query has keys of its own: what is cut, or stands in, is what a dense softmax over these gives."""
    q, k, v, other_k, other_v = tensors(5)
    torch.manual_seed(2)
    index = torch.rand(LENGTH, LENGTH).argsort(-1)[:, :4]
    chosen = torch.zeros(LENGTH, LENGTH, dtype=torch.bool).scatter_(1, index, True)
    pairs = some_pairs()
    pairs[:, 3] = True  # a query that has no key left
    stand_in = (lambda k, v, first: (other_k[:1], other_v[:1])) if instead else None
    found = attend_chosen(q, k, v, index, Severed(pairs, stand_in))
    if instead:
        scores = torch.where(pairs, q @ other_k[:1].mT, q @ k.mT)
        weights = scores.masked_fill(~chosen, -torch.inf).softmax(-1)
        expected = (weights * ~pairs) @ v + (weights * pairs) @ other_v[:1]
    else:
        expected = dense(q, k, v, chosen & ~pairs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    whole = attend_chosen(q, k, v, index)
    assert torch.equal(attend_chosen(q, k, v, index, Severed(pairs & ~chosen, stand_in)), whole)


def mixer_of(name, small_config):
    torch.manual_seed(0)
    mixer = Chosen.of(small_config, name).build(small_config, RuntimeConfig(device="cpu")).double().eval()
    mixer.init_weights(0.3)
    return mixer


@pytest.fixture
def small_config():
    return ModelConfig(width=16, num_heads=2, mamba=MambaConfig(d_state=8, headdim=8))


@pytest.mark.parametrize("name", [name for name in MIXERS.names() if "keys" in mixer_class(name).cuts])
def test_all_keys_but_one_give_what_that_key_alone_gives(name, small_config):
    """Its value, whatever the query, and whatever the other tokens are; who does not see it gets nothing."""
    mixer, key = mixer_of(name, small_config), 3  # of the scale in the middle
    x = torch.randn(1, LENGTH, 16, dtype=torch.float64)
    pairs = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool)
    pairs[..., key] = False
    sees = torch.from_numpy(mixer.visible(mixer.settings, SCHEDULE))[:, key]
    other = torch.randn_like(x)
    other[:, key] = x[:, key]
    with torch.no_grad(), severing(mixer, Severed(pairs)):
        (found, _), (again, _) = mixer(x, SCHEDULE.span()), mixer(other, SCHEDULE.span())
    assert 0 < sees.sum() < LENGTH
    torch.testing.assert_close(found[:, sees], found[:, [key]].expand(-1, int(sees.sum()), -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, ~sees], found[:, [0]].expand(-1, int((~sees).sum()), -1), rtol=0, atol=1e-12)
    assert not torch.allclose(found[:, 0], found[:, key])
    torch.testing.assert_close(again, found, rtol=0, atol=1e-12)


def test_an_emptied_state_is_a_new_beginning(small_config):
    mixer = mixer_of("mamba", small_config)
    x = torch.randn(2, LENGTH, 16, dtype=torch.float64)
    with torch.no_grad():
        with editing_state(mixer, [2], emptied):
            cut, _ = mixer(x, SCHEDULE.span())
        start = SCHEDULE.offsets[2]
        before, _ = mixer(x[:, :start], SCHEDULE.span(0, 2))
        after, _ = mixer(x[:, start:], SCHEDULE.span(2))
    torch.testing.assert_close(cut, torch.cat((before, after), 1), rtol=0, atol=1e-12)


def test_cuts_end_with_their_block_whatever_happens_in_it(small_config):
    pairs = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool)
    cuts = {
        "global": lambda mixer: severing(mixer, Severed(pairs)),
        "intra": lambda mixer: editing_output(mixer, lambda y, span: y * 0),
        "mamba": lambda mixer: editing_state(mixer, [1], emptied),
    }
    x = torch.randn(1, LENGTH, 16, dtype=torch.float64)
    for name, cut in cuts.items():
        mixer = mixer_of(name, small_config)
        plain, _ = mixer(x, SCHEDULE.span())
        with pytest.raises(KeyError), cut(mixer):
            assert not torch.equal(mixer(x, SCHEDULE.span())[0], plain)
            raise KeyError
        assert torch.equal(mixer(x, SCHEDULE.span())[0], plain)
        assert "forward" not in vars(mixer) and mixer.severed is None and not mixer._forward_hooks


class Pair(NamedTuple):
    a: object
    b: object


def test_states_of_every_form_are_mapped():
    one, two = torch.ones(2), torch.full((2,), 2.0)
    state = Pair([one, (two, 3)], {"x": KeyValueState(one, two, 5), "y": None})
    found = map_tensors(lambda a, b: a + b, state, state)
    assert isinstance(found, Pair) and found.b["x"].filled == 5 and found.b["y"] is None and found.a[1][1] == 3
    assert torch.equal(found.a[0], 2 * one) and torch.equal(found.b["x"].values, 2 * two)
    assert not emptied(state).a[0].any() and one.all()
