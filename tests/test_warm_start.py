"""A generator that starts from a checkpoint: kept layers compute what they did, new ones are initialised."""

import pytest
import torch
from safetensors.torch import save_file

from mvar.checkpoints.warm_start import start_from
from mvar.config import ModelConfig, TokenSpace
from mvar.errors import UserError
from mvar.transformer import ScaleTransformer

SPACE = TokenSpace((1, 2, 3), 16, 4, 3)


def make(pattern="global", seed=0, space=SPACE, **fields):
    torch.manual_seed(seed)
    sizes = {"depth": 4, "width": 32, "num_heads": 2, "mamba": {"d_state": 8, "headdim": 16}}
    return ScaleTransformer(ModelConfig(pattern=pattern, **sizes | fields), space)


def saved(model, tmp_path):
    path = tmp_path / "var.safetensors"
    save_file(model.state_dict(), path)
    return path


def logits(model):
    torch.manual_seed(9)
    with torch.no_grad():
        return model.eval()(torch.tensor([0, 2]), torch.randn(2, 13, 4))[0]


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_the_same_model_is_taken_over_whole(shared_adaln, tmp_path):
    source, model = make(shared_adaln=shared_adaln), make(seed=1, shared_adaln=shared_adaln)
    assert not torch.equal(logits(source), logits(model))
    start = start_from(model, saved(source, tmp_path))
    assert torch.equal(logits(source), logits(model))
    assert start.loaded_layers == (0, 1, 2, 3) and start.new_layers == () and start.new_parameters == ()
    assert "layers 0-3 loaded; nothing initialised anew" in str(start)


@pytest.mark.parametrize("shared_adaln", [False, True])
def test_hybrid_keeps_layers_and_initialises_the_replaced(shared_adaln, tmp_path):
    source = make(shared_adaln=shared_adaln)
    pattern = "global 2*intra+mamba global"
    model, untouched = (make(pattern, seed=1, shared_adaln=shared_adaln) for _ in range(2))
    start = start_from(model, saved(source, tmp_path))
    assert (start.loaded_layers, start.new_layers) == ((0, 3), (1, 2))
    for name, tensor in model.state_dict().items():
        if name.startswith(("blocks.1.", "blocks.2.")):
            assert torch.equal(tensor, untouched.state_dict()[name]), name
        elif not name.startswith("shared_ada_lin"):
            assert torch.equal(tensor, source.state_dict()[name]), name
    assert bool(start.new_parameters) == shared_adaln
    # the kept layers see the same modulation: with the new ones cut out, the model is the checkpoint's
    for block in (source.blocks, model.blocks):
        del block[1:3]
    assert torch.equal(logits(source), logits(model))


def test_m_var_gives_back_a_var_layer_for_shared_adaln(tmp_path):
    """From nine chunks to six: the first branch's and the feed-forward's."""
    source = make("global 3*intra+mamba", shared_adaln=True)
    model = make("global", seed=1, shared_adaln=True)
    start_from(model, saved(source, tmp_path))
    for blocks in (source.blocks, model.blocks):
        del blocks[1:]
    assert torch.equal(logits(source), logits(model))


@pytest.mark.parametrize(
    ("theirs", "ours", "kept"),
    [
        ("intra|mamba", "intra|mamba", (0, 1, 2, 3)),
        ("intra|mamba", "intra+mamba", ()),
        ("intra+mamba", "2*intra+mamba 2*intra|mamba", (0, 1)),
        ("global", "global 2*gla|conv global", (0, 3)),
        ("2*global 2*intra|mamba", "2*markov:2 2*intra|mamba", (2, 3)),
    ],
)
@pytest.mark.parametrize("shared_adaln", [False, True])
def test_any_layer_may_replace_any_other(theirs, ours, kept, shared_adaln, tmp_path):
    """Also from a file that says nothing of its layers: branches in parallel have fewer chunks of modulation."""
    source, model = (make(text, seed, shared_adaln=shared_adaln) for seed, text in enumerate((theirs, ours)))
    assert start_from(model, saved(source, tmp_path)).loaded_layers == kept
    assert logits(model).isfinite().all()
    for number in kept:
        for name, tensor in source.blocks[number].state_dict().items():
            assert torch.equal(model.blocks[number].state_dict()[name], tensor)


def test_other_classes_get_a_new_embedding(tmp_path):
    model = make(space=TokenSpace((1, 2, 3), 16, 4, 5), seed=1)
    before = model.class_emb.weight.clone()
    start = start_from(model, saved(make(), tmp_path))
    assert torch.equal(model.class_emb.weight, before)
    assert start.new_parameters == ("class_emb.weight (5 classes, the checkpoint has 3)",)


def test_mamba_of_other_sizes_is_a_new_layer(tmp_path):
    model = make("intra+mamba", seed=1, mamba={"d_state": 4, "headdim": 16})
    start = start_from(model, saved(make("intra+mamba"), tmp_path))
    assert start.loaded_layers == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 2}, "model.depth: 2 here, 4 in the checkpoint"),
        ({"width": 64}, "model.width: 64 here, 32 in the checkpoint"),
        ({"attn_l2_norm": False}, "model.attn_l2_norm: False here, True in the checkpoint"),
        ({"mlp_ratio": 2.0}, "model.mlp_ratio: 2.0 here, 4.0 in the checkpoint"),
    ],
)
def test_other_sizes_are_refused_by_name(fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        start_from(make(**fields), saved(make(), tmp_path))


def test_other_scales_are_refused(tmp_path):
    with pytest.raises(UserError, match="patch_sides: 1-2-4"):
        start_from(make(space=TokenSpace((1, 2, 4), 16, 4, 3)), saved(make(), tmp_path))
    with pytest.raises(UserError, match="vocab_size: 32 here, 16 in the checkpoint"):
        start_from(make(space=TokenSpace((1, 2, 3), 32, 4, 3)), saved(make(), tmp_path))
