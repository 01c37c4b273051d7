"""Single maps of every mixer: attention times values is what the mixer gives; the reach of one without maps."""

import numpy as np
import pytest
import torch

from mvar.config import MambaConfig, ModelConfig, TokenSpace
from mvar.errors import UserError
from mvar.pattern import parse_layer
from mvar.probes.reach import reach
from mvar.probes.single_maps import each_map, parts_of
from mvar.registries import MIXERS
from mvar.transformer import ScaleTransformer

SIDES, HEADS, WIDTH = (1, 2, 3), 2, 16


def model_of(pattern, depth=1):
    torch.manual_seed(0)
    config = ModelConfig(
        depth=depth, width=WIDTH, num_heads=HEADS, pattern=pattern, mamba=MambaConfig(d_state=8, headdim=8)
    )
    model = ScaleTransformer(config, TokenSpace(SIDES, vocab_size=11, code_channels=5, num_classes=3))
    with torch.no_grad():  # the gates of a fresh model are all but closed
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.double().eval()


def inputs_of(model):
    torch.manual_seed(1)
    return torch.tensor(2), torch.randn(model.schedule.num_tokens - 1, 5, dtype=torch.float64)


def maps_of(model, wanted):
    """Whole maps `(L, L)` by part and head."""
    found, count = {}, model.schedule.num_tokens

    def take(part, head, blocks):
        rows = [torch.nn.functional.pad(block, (0, count - block.shape[1])) for block in blocks]
        found[part, head] = torch.cat(rows)

    each_map(model, *inputs_of(model), wanted, take)
    return found


def seen_by(module, model):
    """What a mixer gets and gives, `(L, D)` each, in the forward that maps are made of."""
    kept = []
    handle = module.register_forward_hook(lambda module, given, result: kept.extend((given[0][0], result[0][0])))
    with torch.no_grad():
        model(*(part[None] for part in inputs_of(model)))
    handle.remove()
    return kept


@pytest.mark.parametrize("name", sorted(MIXERS.names()))
def test_a_map_is_what_the_mixer_does(name):
    model = model_of(name)
    (part,) = parts_of(model)
    x, y = seen_by(part.module, model)
    heads = [None, *range(part.num_heads)]
    found = maps_of(model, {0: heads})
    visible = torch.from_numpy(part.module.visible(part.module.settings, model.schedule))
    assert all((found[0, head][~visible] == 0).all() for head in heads)
    looked_at = torch.stack([part.sum(1) for part in (found[0, None] > 0).split(model.schedule.lengths, 1)], 1)
    np.testing.assert_array_equal(part.sees(model.schedule), looked_at)
    torch.testing.assert_close(found[0, None].sum(1), torch.ones(len(x), dtype=found[0, None].dtype))
    if part.kind == "reach":
        exact = jacobian_norms(part.module, x, model.schedule)
        shares = reach(part.module, x, model.schedule.span(), directions=WIDTH)
        torch.testing.assert_close(shares, exact, rtol=1e-6, atol=1e-9)
        assert (exact[visible] > 0).all() and set(found) == {(0, None)}
        assert (
            torch.corrcoef(torch.stack((found[0, None].flatten(), (exact / exact.sum(1, True)).flatten())))[0, 1] > 0.8
        )
        return
    weights = torch.stack([found[0, head] for head in range(part.num_heads)]).double()
    torch.testing.assert_close(found[0, None].double(), weights.mean(0), rtol=0, atol=1e-6)
    _, _, v = part.module.project(x[None])
    torch.testing.assert_close(part.module.merge(weights[None] @ v)[0], y, rtol=0, atol=1e-6 * float(y.abs().max()))


def jacobian_norms(module, x, schedule):
    full = torch.autograd.functional.jacobian(lambda x: module(x[None], schedule.span())[0][0], x)
    return full.square().sum((1, 3)).sqrt()  # (L, D, L, D) to (L, L)


def test_reach_is_right_on_average_and_row_by_row():
    model = model_of("mamba")
    (part,), span = parts_of(model), model.schedule.span()
    x, _ = seen_by(part.module, model)
    exact = jacobian_norms(part.module, x, model.schedule)
    squares = torch.stack([reach(part.module, x, span, directions=2, seed=seed).square() for seed in range(60)])
    error = squares.std(0) / 60**0.5
    assert ((squares.mean(0) - exact.square()).abs() <= 4.5 * error + 1e-12).all()
    some = reach(part.module, x, span, range(5, 9), directions=2)
    torch.testing.assert_close(some, reach(part.module, x, span, directions=2)[5:9])
    assert all(p.grad is None for p in part.module.parameters())


def test_a_layer_of_several_mixers_has_a_part_each():
    model = model_of("intra+mamba 1*global", depth=2)
    found = [(part.layer, part.mixer, part.num_heads, part.kind) for part in parts_of(model)]
    assert found == [(0, "intra", 2, "attention"), (0, "mamba", 0, "reach"), (1, "global", 2, "attention")]
    assert [name for layer in model.config.layers for name in parse_layer(layer)] == [f[1] for f in found]
    assert set(maps_of(model, {0: [1], 1: [None], 2: [None, 0]})) == {(0, 1), (1, None), (2, None), (2, 0)}


def test_the_model_is_left_as_it_was():
    model = model_of("global+mamba").train()
    label, inputs = inputs_of(model)

    def fails(part, head, blocks):
        raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        each_map(model, label, inputs, {0: [None], 1: [None]}, fails)
    assert model.training and all("project" not in vars(part.module) for part in parts_of(model))
    assert not any(part.module._forward_pre_hooks for part in parts_of(model))


def test_a_map_is_made_scale_by_scale():
    model, shapes = model_of("global"), []

    def take(part, head, blocks):
        shapes.extend(block.shape for block in blocks)

    each_map(model, *inputs_of(model), {0: [0]}, take)
    assert [tuple(shape) for shape in shapes] == [(1, 1), (4, 5), (9, 14)]
    assert np.prod(shapes[-1]) < model.schedule.num_tokens**2
