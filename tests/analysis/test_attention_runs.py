"""Attention of a run: measured on its held-out tokens, kept, and measured again when what it rests on has changed."""

import json

import pytest
import torch

from analysis import attention
from analysis.attention import attention_stats, run_attention
from experiments import stages
from experiments.store import Store
from mvar.config import override
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer
from mvar.weights import save_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose models are only initialised: store, run and generator."""
    config = override(PRESETS["smoke"], {"model.pattern": "global intra global global", "data.heldout_fraction": 0.2})
    store = Store(tmp_path_factory.mktemp("attention") / "results")
    torch.manual_seed(0)
    stage = store.stage("tokenizer", config.tokenizer_id)
    save_weights(stage.path / "tokenizer.safetensors", Tokenizer(config.tokenizer, config.data.channels), {})
    stage.write_status("done", "tokenizer")
    stages.build_tokens(context(config, store))
    run = store.run(config.run_id)
    run.write_config(config)
    model = ScaleTransformer(config.model, config.token_space)
    save_weights(run.weights, model, {})
    return store, run, model


def context(config, store):
    return stages.Context(config, store, progress=lambda stage, done, total: None, should_stop=lambda: False)


def test_measured_on_heldout_tokens_once(trained, monkeypatch):
    store, run, model = trained
    calls = []
    found = run_attention(store, run, lambda *a: calls.append(a))
    here = context(run.config(), store)
    tokens, tokenizer = stages.open_tokens(here, "heldout"), stages.load_tokenizer(here)
    codes, labels = (torch.tensor(a[:]).long() for a in (tokens.tokens, tokens.labels))
    expected = attention_stats(model, [(labels, tokenizer.quantize.inputs(codes))])
    assert found.layers == (0, 2, 3) and found.num_images == len(codes) == calls[-1][0] == calls[-1][1]
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-6)
    monkeypatch.setattr(attention, "load_generator", None)  # the second time nothing is loaded
    assert torch.equal(run_attention(store, run).mean, found.mean)


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"schema_version": 9}', '{"weights_sha256": "other"}'])
def test_a_cache_that_does_not_fit_is_measured_again(trained, content):
    store, run, _ = trained
    wanted = run_attention(store, run)
    path = run.path / "attention.json"
    path.write_text(content)
    assert torch.equal(run_attention(store, run).mean, wanted.mean)
    assert json.loads(path.read_text())["num_images"] == wanted.num_images


def test_other_weights_are_measured_anew(trained):
    store, run, model = trained
    before, kept = run_attention(store, run), run.weights.read_bytes()
    with torch.no_grad():
        model.blocks[0].attn.mat_qkv.weight *= 4
    save_weights(run.weights, model, {})
    assert not torch.allclose(run_attention(store, run).mean[0], before.mean[0])
    run.weights.write_bytes(kept)


def test_at_most_so_many_images(trained, monkeypatch):
    store, run, _ = trained
    monkeypatch.setattr(attention, "MAX_IMAGES", 7)
    (run.path / "attention.json").unlink(missing_ok=True)
    assert run_attention(store, run).num_images == 7
    (run.path / "attention.json").unlink()


def test_what_is_missing_is_named(trained):
    store, run, _ = trained
    kept = run.weights.read_bytes()
    (run.path / "attention.json").unlink(missing_ok=True)
    run.weights.write_bytes(kept[:100])
    with pytest.raises(UserError, match="not a readable"):
        run_attention(store, run)
    run.weights.unlink()
    with pytest.raises(UserError, match="a run that has finished training"):
        run_attention(store, run)
    run.weights.write_bytes(kept)
    cache = next((store.root / "stages").glob("tokens-*/heldout"))
    cache.rename(cache.with_name("moved"))
    try:
        with pytest.raises(UserError, match="token cache"):
            run_attention(store, run)
    finally:
        cache.with_name("moved").rename(cache)
