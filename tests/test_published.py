"""Published checkpoints: inferred, loaded strictly, written back with the official keys, refused in one line."""

import json
import pickle
from collections import OrderedDict

import pytest
import torch
from official import BUFFERS, GOLDEN, PATTERNS, facts_of
from safetensors.torch import load_file, save_file

from mvar.checkpoints.published import (
    check_pair,
    load_generator,
    load_tokenizer,
    official_state,
    write_official,
)
from mvar.config import ModelConfig, TokenizerConfig, TokenSpace
from mvar.errors import UserError
from mvar.presets import VAR_TOKENIZER, model_size
from mvar.scales import PATCH_SIDES
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer

GENERATORS = ["var_plain", "var_plain_shared", "var_l2", "var_l2_shared", "mvar_plain", "mvar_l2"]


def assert_same(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[key]), key


def heads_of(case):
    """Without qk-norm and with heads that are not 64 wide, no file can tell their number."""
    facts = facts_of(case)
    return None if facts["attn_l2_norm"] else facts["heads"]


def golden_state(case):
    return load_file(GOLDEN / case / "state.safetensors")


@pytest.mark.parametrize("case", GENERATORS)
def test_a_generator_tells_its_own_configuration(case):
    model, found = load_generator(GOLDEN / case / "state.safetensors", num_heads=heads_of(case))
    facts = facts_of(case)
    assert (found.config.depth, found.config.width, found.config.num_heads) == (
        facts["depth"],
        facts["width"],
        facts["heads"],
    )
    assert found.config.pattern == PATTERNS[facts["kind"]]
    assert found.config.mlp_ratio == facts["mlp_ratio"]
    assert (found.config.attn_l2_norm, found.config.shared_adaln) == (facts["attn_l2_norm"], facts["shared_aln"])
    space = TokenSpace(tuple(facts["patch_nums"]), facts["vocab_size"], facts["Cvae"], facts["num_classes"])
    assert found.space == space
    assert not model.training and not found.assumed
    inputs = load_file(GOLDEN / case / "inputs.safetensors")
    expected = load_file(GOLDEN / case / "outputs.safetensors")
    with torch.no_grad():
        logits = model(inputs["tf.label"], inputs["tf.x"])[0]
    torch.testing.assert_close(logits, expected["tf.logits"], rtol=0, atol=1e-4)


WRAPPINGS = {
    "plain": lambda state: state,
    "trainer": lambda state: {
        "epoch": 3,
        "iter": 0,
        "trainer": {
            "config": {"label_smooth": 0.0},
            "var_wo_ddp": OrderedDict(state),
            "vae_local": {"quantize.embedding.weight": torch.zeros(4, 2)},
            "var_opt": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        "args": OrderedDict(depth=2),
    },
    "compiled": lambda state: {f"_orig_mod.{key}": tensor for key, tensor in state.items()},
    "ddp": lambda state: {"state_dict": {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}},
    "inner": lambda state: {key.replace("attn.", "attn._orig_mod."): tensor for key, tensor in state.items()},
    "no buffers": lambda state: {key: tensor for key, tensor in state.items() if not key.endswith(BUFFERS)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_and_nested_checkpoints(wrapping, tmp_path):
    state = golden_state("mvar_l2")  # 1-2-3-4: a schedule that is known by its numbers
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "ckpt.pth")
    model, facts = load_generator(tmp_path / "ckpt.pth")
    assert facts.config.pattern == "intra+mamba" and facts.space.patch_sides == (1, 2, 3, 4)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key].float())


@pytest.mark.parametrize("depth", [16, 20, 24, 30])
@pytest.mark.parametrize("pattern", ["global", "intra+mamba"])
def test_released_sizes_are_inferred(depth, pattern, tmp_path, monkeypatch):
    """Names and shapes of the released sizes; a file of their gigabytes would say no more."""
    from mvar.checkpoints import published
    from mvar.checkpoints.checkpoint_files import Checkpoint

    config = model_size(depth, pattern=pattern, drop_path=0.0)
    space = TokenSpace(PATCH_SIDES["256"], 4096, 32, 1000)
    with torch.device("meta"):
        state = ScaleTransformer(config, space).state_dict()
    facts = published.infer_generator(Checkpoint(tmp_path, "generator", state))
    assert facts.config.model_copy(update={"init_adaln_gamma": config.init_adaln_gamma}) == config
    assert facts.space == space
    assert bool(facts.assumed) == (depth <= 20)  # no qk-norm: 64 channels a head are an assumption, and said


def test_released_keys_are_the_official_ones():
    import re

    from mvar.checkpoints.published import BUFFERS as DROPPED

    for name, pattern in (("var_d16_256", "global"), ("mvar_d16_256", "intra+mamba")):
        official = json.loads((GOLDEN / "param_counts" / "official_keys.json").read_text())[name]
        listed = {re.sub(r"blocks\.\d+", "blocks.0", key) for key in official["keys"] if not DROPPED.search(key)}
        qk_norm = any("scale_mul" in key for key in listed)
        config = ModelConfig(depth=1, width=64, num_heads=1, pattern=pattern, attn_l2_norm=qk_norm)
        with torch.device("meta"):
            own = ScaleTransformer(config, TokenSpace((1, 2), 8, 4, 2)).state_dict()
        assert {key for key in own if "levels" not in key} == listed


def test_tokenizers_tell_their_own_configuration():
    facts = facts_of("tok_full_q4")
    tokenizer = load_tokenizer(GOLDEN / "tok_full_q4" / "vae.safetensors")
    config = tokenizer.config
    assert config.patch_sides == tuple(facts["patch_nums"])
    assert (config.vocab_size, config.code_channels, config.width) == (facts["vocab_size"], facts["Cvae"], facts["ch"])
    assert config.channel_multipliers == tuple(facts["ch_mult"]) and config.num_res_blocks == facts["num_res_blocks"]
    assert (config.attention, config.mid_attention) == (facts["using_sa"], facts["using_mid_sa"])
    assert config.share_phi == facts["share_quant_resi"] and config.beta == facts["beta"]
    inputs, outputs = (load_file(GOLDEN / "tok_full_q4" / f"{n}.safetensors") for n in ("inputs", "outputs"))
    assert torch.equal(tokenizer.encode(inputs["img"]), outputs["idx"])


def small_tokenizer(**fields):
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(width=8, vocab_size=64, **fields), 1)


@pytest.mark.parametrize("share_phi", [0, 1, 3, 4])
def test_tokenizer_round_trip(share_phi, tmp_path):
    tokenizer = small_tokenizer(share_phi=share_phi)
    torch.save({"trainer": {"vae_local": tokenizer.state_dict()}}, tmp_path / "vae.pth")
    found = load_tokenizer(tmp_path / "vae.pth")
    assert found.config.share_phi == share_phi
    assert_same(found, tokenizer)


def test_a_tokenizer_writes_other_scales_on_demand(tmp_path):
    torch.save(small_tokenizer(share_phi=1).state_dict(), tmp_path / "vae.pth")
    found = load_tokenizer(tmp_path / "vae.pth", patch_sides=(1, 2, 4))
    assert found.encode(torch.zeros(1, 1, 8, 8)).shape == (1, 21)


@pytest.mark.slow
def test_the_released_tokenizer_size(tmp_path):
    with torch.device("meta"):
        state = Tokenizer(VAR_TOKENIZER, 3).state_dict()
    torch.save(
        {key: torch.zeros(tensor.shape, dtype=torch.float16) for key, tensor in state.items()}, tmp_path / "v.pth"
    )
    found = load_tokenizer(tmp_path / "v.pth")
    wanted = {"checkpoint": None, "shift_px": VAR_TOKENIZER.shift_px, "train": VAR_TOKENIZER.train}
    assert found.config.model_copy(update=wanted) == VAR_TOKENIZER.model_copy(update=wanted)


# Export ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GENERATORS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_export_is_the_official_file(case, suffix, tmp_path):
    """What was loaded is written back with exactly the official keys, shapes and values, buffers included."""
    model, _ = load_generator(GOLDEN / case / "state.safetensors", num_heads=heads_of(case))
    path = tmp_path / f"out.{suffix}"
    write_official(path, official_state(model))
    written = torch.load(path, weights_only=True) if suffix == "pth" else load_file(path)
    expected = golden_state(case)
    assert written.keys() == expected.keys()
    for key, tensor in expected.items():
        assert written[key].shape == tensor.shape, key
        assert torch.equal(written[key].double(), tensor.double()), key
    again, _ = load_generator(path, num_heads=heads_of(case))
    assert_same(again, model)


def make(pattern, **fields):
    torch.manual_seed(0)
    config = ModelConfig(depth=2, width=32, num_heads=2, pattern=pattern, mamba={"d_state": 8, "headdim": 16}, **fields)
    return ScaleTransformer(config, TokenSpace((1, 2, 3), 16, 4, 3))


@pytest.mark.parametrize(
    ("pattern", "fields"), [("global intra+mamba", {}), ("mamba", {}), ("intra+mamba", {"shared_adaln": True})]
)
def test_export_refuses_what_official_code_cannot_build(pattern, fields):
    with pytest.raises(UserError, match="official code has no model"):
        official_state(make(pattern, **fields))


@pytest.mark.parametrize("pattern", ["global", "intra+mamba", "global intra+mamba", "mamba", "intra+mamba mamba"])
@pytest.mark.parametrize("shared_adaln", [False, True])
def test_mixed_models_are_inferred_layer_by_layer(pattern, shared_adaln, tmp_path):
    model = make(pattern, shared_adaln=shared_adaln)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    heads = None if model.config.attn_l2_norm else 2
    found, facts = load_generator(tmp_path / "m.safetensors", patch_sides=(1, 2, 3), num_heads=heads or 2)
    assert facts.config.layers == model.config.layers
    assert facts.config.mamba == model.config.mamba or "mamba" not in pattern
    assert_same(found, model)


def test_shared_adaln_m_var_samples_at_512_px():
    """What the official code cannot do: nine shared chunks, and scales beyond its 256 keys. State = whole image."""
    config = ModelConfig(depth=1, width=32, num_heads=2, pattern="intra+mamba", shared_adaln=True)
    space = TokenSpace(PATCH_SIDES["512"], 16, 4, 3)
    torch.manual_seed(0)
    model = ScaleTransformer(config, space).double().eval()
    inputs = torch.randn(1, space.schedule.num_tokens - 1, 4, dtype=torch.float64)
    labels = torch.tensor([1])
    with torch.no_grad():
        whole, _ = model(labels, inputs)
        parts, state = [], None
        for span in space.schedule.steps():
            own = inputs[:, max(span.start - 1, 0) : span.stop - 1]
            logits, state = model(labels, own, span, state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)


# Mistakes -------------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def damaged(tmp_path):
    state = golden_state("var_l2")
    files = {
        "truncated.pth": lambda path: (torch.save(state, path), path.write_bytes(path.read_bytes()[:-2000])),
        "truncated.safetensors": lambda path: (
            save_file(state, path),
            path.write_bytes(path.read_bytes()[:-2000]),
        ),
        "text.pth": lambda path: path.write_text("hello"),
        "empty.pth": lambda path: path.write_bytes(b""),
        "code.pth": lambda path: torch.save({"state": Evil()}, path),
        "pickle.pth": lambda path: path.write_bytes(pickle.dumps(Evil())),
        "other.pth": lambda path: torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, path),
        "list.pth": lambda path: torch.save([1, 2], path),
        "folder.pth": lambda path: path.mkdir(),
    }
    for name, write in files.items():
        write(tmp_path / name)
    return files


MESSAGES = {
    "truncated.pth": "truncated or damaged",
    "truncated.safetensors": "truncated or damaged",
    "text.pth": "cannot be read",
    "empty.pth": "cannot be read",
    "code.pth": "could run code",
    "pickle.pth": "could run code",
    "other.pth": "its keys are conv1.weight, fc.bias",
    "list.pth": "holds no named tensors",
    "folder.pth": "no file",
    "absent.pth": "no file",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_damaged_and_foreign_files_are_one_line(name, tmp_path, capsys):
    damaged(tmp_path)
    with pytest.raises(UserError) as caught:
        load_generator(tmp_path / name)
    message = str(caught.value)
    assert MESSAGES[name] in message and name in message and "\n" not in message and "allowed" in message
    assert capsys.readouterr().out == ""  # nothing in the file has run


def test_a_tokenizer_is_not_a_generator_and_the_other_way_round(tmp_path):
    with pytest.raises(UserError, match="it holds a tokenizer"):
        load_generator(GOLDEN / "tok_full_q4" / "vae.safetensors")
    with pytest.raises(UserError, match="it holds a generator"):
        load_tokenizer(GOLDEN / "var_l2" / "state.safetensors")


def test_all_wrong_keys_are_in_one_line(tmp_path):
    state = golden_state("var_l2")
    state["blocks.1.extra.weight"] = torch.zeros(2)
    del state["blocks.1.ffn.fc2.bias"], state["head.bias"]
    state["head_nm.ada_lin.1.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "s.safetensors")
    with pytest.raises(UserError) as caught:
        load_generator(tmp_path / "s.safetensors")
    message = str(caught.value)
    assert "missing: blocks.1.ffn.fc2.bias, head.bias" in message
    assert "unexpected: blocks.1.extra.weight" in message
    assert "of another shape: head_nm.ada_lin.1.bias [5] instead of" in message


def test_layers_with_a_gap(tmp_path):
    state = {k: v for k, v in golden_state("var_l2").items() if not k.startswith("blocks.0.")}
    save_file(state, tmp_path / "s.safetensors")
    with pytest.raises(UserError, match="allowed: all from 0 on"):
        load_generator(tmp_path / "s.safetensors")


def test_scales_that_do_not_fit_the_position_embedding(tmp_path):
    path = GOLDEN / "mvar_l2" / "state.safetensors"
    for sides in ((1, 2, 3, 5), (1, 2, 3), (1, 1, 1, 1)):
        with pytest.raises(UserError, match=r"patch_sides: .* does not fit .* allowed: the checkpoint's 1-2-3-4"):
            load_generator(path, patch_sides=sides)
    state = {key: tensor for key, tensor in golden_state("var_l2").items() if not key.endswith(BUFFERS)}
    if facts_of("var_l2")["patch_nums"] not in [list(s) for s in PATCH_SIDES.values()]:
        save_file(state, tmp_path / "s.safetensors")
        with pytest.raises(UserError, match="no known schedule has; allowed: give patch_sides"):
            load_generator(tmp_path / "s.safetensors")


def test_heads_that_cannot_be_told(tmp_path):
    with pytest.raises(UserError, match="allowed: give num_heads"):
        load_generator(GOLDEN / "var_plain" / "state.safetensors")


def test_a_tokenizer_of_another_codebook():
    tokenizer = small_tokenizer().config
    space = TokenSpace((1, 2, 3, 4), 64, 8, 10)
    check_pair(tokenizer, space)
    with pytest.raises(UserError, match=r"codebook \(64 codes .* allowed: 4096 codes of 8"):
        check_pair(tokenizer, TokenSpace((1, 2, 3, 4), 4096, 8, 10))
    with pytest.raises(UserError, match=r"scales \(1-2-3-4\) .* allowed: 1-2-4"):
        check_pair(tokenizer, TokenSpace((1, 2, 4), 64, 8, 10))


def test_empty_models_are_complete():
    """`empty` skips initialisation; after loading nothing of it may be left undefined."""
    model = make("global intra+mamba")
    bare = ScaleTransformer.empty(model.config, model.space)
    bare.load_state_dict(model.state_dict())
    labels, inputs = torch.tensor([0, 2]), torch.randn(2, 13, 4)
    model.eval(), bare.eval()
    assert torch.equal(model(labels, inputs)[0], bare(labels, inputs)[0])
