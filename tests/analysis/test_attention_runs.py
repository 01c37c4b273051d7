"""Attention of a run: measured on its held-out tokens, kept, and measured again when what it rests on has changed."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from untrained_runs import finish_tokenizer, save_untrained

from mvar.checkpoints.weights import save_weights
from mvar.config import override
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.probes.attention_kept import measure
from mvar.probes.attention_mass import attention_stats, observing
from mvar.probes.measurable import drawn_images
from mvar.runs.stages.attention import AttentionStage
from mvar.runs.store import Store
from mvar.runs.wiring import Stages, run_attention
from mvar.sampling import generate


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose models are only initialised: store, run and generator."""
    config = override(PRESETS["smoke"], {"model.pattern": "global intra global global", "data.heldout_fraction": 0.2})
    store = Store(tmp_path_factory.mktemp("attention") / "results")
    run, model = save_untrained(store, config)
    finish_tokenizer(store, config)
    Stages(config, store).tokens.run()
    return store, run, model


def attention(store, run) -> AttentionStage:
    return Stages.of_run(store, run).attention


def test_measured_on_heldout_tokens_once(trained, monkeypatch):
    store, run, model = trained
    calls = []
    found = run_attention(store, run, lambda *a: calls.append(a))
    here = Stages.of_run(store, run)
    tokens, tokenizer = here.tokens.open("heldout"), here.tokenizer.load()
    codes, labels = (torch.tensor(a[:]).long() for a in (tokens.tokens, tokens.labels))
    expected = attention_stats(model, [(labels, tokenizer.quantize.inputs(codes))])
    assert found.layers == (0, 2, 3) and found.num_images == len(codes) == calls[-1][0] == calls[-1][1]
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-6)
    monkeypatch.setattr("mvar.runs.stages.train.trained_generator", None)  # the second time nothing is loaded
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


def test_at_most_so_many_images(trained, tmp_path):
    store, run, _ = trained
    assert measure(attention(store, run).heldout(limit=7), tmp_path).num_images == 7


def test_every_image_is_kept(trained, tmp_path):
    store, run, _ = trained
    stats = measure(attention(store, run).heldout(limit=7), tmp_path)
    rows = np.load(tmp_path / "attention_images.npy")
    assert rows.shape == (7, 3, 2, 4, 5) and rows.dtype == np.float32
    torch.testing.assert_close(torch.tensor(rows[..., :4]).double().mean(0), stats.mean)
    torch.testing.assert_close(torch.tensor(rows[..., 4]).double().std(0), stats.entropy_sd)


class Killed(BaseException):
    """As a signal would."""


@pytest.mark.parametrize("source", [AttentionStage.heldout, AttentionStage.drawn])
@pytest.mark.parametrize("kills", [[1], [2, 3]])
def test_a_killed_measurement_goes_on_and_ends_in_the_same_bytes(trained, tmp_path, source, kills):
    store, run, _ = trained
    what, done = source(attention(store, run), 10, 3), []  # batches of 3, 3, 3, 1
    measure(what, tmp_path / "whole")

    def kill_at(number):
        def progress(images, total):
            done.append(images)
            if len(done) == number:
                raise Killed

        return progress

    for number in kills:
        with pytest.raises(Killed):
            measure(what, tmp_path / "killed", kill_at(number))
    measure(what, tmp_path / "killed", kill_at(None))
    assert done == [3, 6, 9, 10]
    for name in ("attention.json", "attention_images.npy"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {"attention.json", "attention_images.npy", "digests.json", ".attention.lock"}


DRIVER = """
import sys, time
from pathlib import Path
from mvar.probes.attention_kept import measure
from mvar.runs.store import Store
from mvar.runs.wiring import Stages
store = Store(sys.argv[1])
what = Stages.of_run(store, store.find_run(sys.argv[2])).attention.heldout(10, 3)
measure(what, Path(sys.argv[3]), lambda done, total: time.sleep(60))
"""


@pytest.mark.slow
def test_a_process_that_was_killed_is_gone_on_from(trained, tmp_path):
    store, run, _ = trained
    record = tmp_path / "killed" / "attention_images.json"
    command = [sys.executable, "-c", DRIVER, str(store.root), run.name, str(tmp_path / "killed")]
    with subprocess.Popen(command) as process:
        until = time.monotonic() + 100
        while not record.exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()  # after the first batch: it sleeps then
    what, done = attention(store, run).heldout(10, 3), []
    measure(what, tmp_path / "killed", lambda images, total: done.append(images))
    measure(what, tmp_path / "whole")
    assert done == [6, 9, 10]
    for name in ("attention.json", "attention_images.npy"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_rows_of_something_else_or_cut_short_are_not_gone_on_from(trained, tmp_path):
    store, run, _ = trained
    what = attention(store, run).heldout(10, 3)
    whole = measure(what, tmp_path / "whole")
    for damage in ("other", "short"):
        folder = tmp_path / damage
        with pytest.raises(Killed):
            measure(what, folder, lambda images, total: (_ for _ in ()).throw(Killed))
        if damage == "short":
            data = folder / "attention_images.partial"
            data.write_bytes(data.read_bytes()[:-1])
        else:
            record = folder / "attention_images.json"
            record.write_text(record.read_text().replace('"limit": 10', '"limit": 9'))
        calls = []
        assert torch.equal(measure(what, folder, lambda *a, calls=calls: calls.append(a)).mean, whole.mean)
        assert calls[0] == (3, 10)


def test_drawn_images_are_measured_on_what_the_model_saw(trained, tmp_path):
    """Attention observed while images are drawn, scale by scale, is what teacher forcing on them gives."""
    store, run, model = trained
    config = override(run.config(), {"sample.cfg_scale": 0, "sample.more_smooth": True})
    tokenizer = Stages(config, store).tokenizer.load()
    opened = drawn_images(model, tokenizer, 4, config.sample)
    labels, inputs = opened.batch(range(4))
    stats = attention_stats(model, [(labels, inputs)])
    assert labels.tolist() == [0, 1, 2, 3] and stats.num_images == 4
    seen, keys = {}, {}

    def see(number, q, k):
        keys[number] = torch.cat([keys[number], k], 2) if number in keys else k
        seen.setdefault(number, []).append((q @ keys[number].transpose(-1, -2)).softmax(-1))

    with torch.inference_mode(), observing(model, see):
        generate(model, tokenizer.quantize, labels, [(config.sample.seed, i) for i in range(4)], config.sample)
    for row, number in enumerate(stats.layers):
        for scale, weights in enumerate(seen[number]):
            mass = torch.stack(
                [w.sum(-1).mean((0, 2)) for w in weights.split(model.schedule.lengths[: scale + 1], -1)], -1
            )
            torch.testing.assert_close(stats.mean[row, :, scale, : scale + 1].float(), mass, rtol=0, atol=1e-5)


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
