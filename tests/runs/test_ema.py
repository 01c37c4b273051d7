"""Running means of the weights from training to evaluation: off by default, kept, sampled as a setting."""

import os
import signal

import killed_runs
import numpy as np
import pytest
import torch
from killed_runs import in_process, kill_at, outcome

import mvar
from mvar.checkpoints.published import load_generator
from mvar.checkpoints.weights import load_weights
from mvar.cli import main
from mvar.config import override
from mvar.errors import OK, USER_ERROR, UserError
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE
from mvar.runs.store import Store

CONFIG = override(killed_runs.CONFIG, {"model.pattern": "intra+mamba"})  # official code has it: for `mvar export`
HALF_LIVES = (30, 5000)
WITH = override(CONFIG, {"train.ema": HALF_LIVES})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run with two half-lives, and beside it the same one without."""
    found = Store(tmp_path_factory.mktemp("ema"))
    assert execute(WITH, found) == execute(CONFIG, found) == DONE
    return found


def test_ids_move_only_where_they_are_kept():
    assert override(CONFIG, {"train.ema": ()}).run_id == CONFIG.run_id != WITH.run_id
    assert override(WITH, {"sample.ema": 30}).run_id == WITH.run_id
    assert override(WITH, {"sample.ema": 30}).evaluation_id != WITH.evaluation_id == CONFIG.evaluation_id


@pytest.mark.slow
def test_the_weights_are_those_of_a_training_without_them(store):
    with_them, without = (store.run_of(config) for config in (WITH, CONFIG))
    states = [load_weights(run.weights)[0] for run in (with_them, without)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert not list(without.path.glob("model-ema-*"))
    kept = [load_weights(with_them.weights_of(half_life)) for half_life in HALF_LIVES]
    assert [path.name for path in sorted(with_them.path.glob("model-ema-*"))] == [
        f"model-ema-{half_life}.safetensors" for half_life in HALF_LIVES
    ]
    for state, metadata in kept:
        assert state.keys() == states[0].keys() and metadata["config"]["train"]["ema"] == list(HALF_LIVES)
    name = max(states[0], key=lambda name: (states[0][name] - kept[1][0][name]).abs().max().item())
    far, near = ((states[0][name] - state[name]).abs().max() for state, _ in reversed(kept))
    assert 0 < near < far


@pytest.mark.slow
def test_a_setting_of_sampling_draws_and_is_measured_with_them(store):
    run = store.run_of(WITH)
    found = {}
    for half_life in (0, *HALF_LIVES):
        config = override(WITH, {"sample.ema": half_life})
        assert execute(config, store) == DONE
        found[half_life] = run.evaluations()[config.evaluation_id]
    assert "ema" not in found[0]["sample"] and found[30]["sample"]["ema"] == 30
    nll = [found[half_life]["metrics"]["eval/nll_bits_per_token"] for half_life in found]
    assert len(set(nll)) == 3
    trained = mvar.load(str(run.path))
    images = [trained.sample(seed=1, ema=half_life) for half_life in found]
    assert not np.array_equal(images[0], images[2]) and np.array_equal(images[0], trained.sample(seed=1))


@pytest.mark.slow
def test_a_half_life_that_was_not_kept_is_one_line_with_those_that_were(store, capsys, monkeypatch):
    monkeypatch.chdir(store.root.parent)
    name = str(store.run_of(WITH).path)
    assert main(["evaluate", name, "--set", "sample.ema=31"]) == USER_ERROR
    line = capsys.readouterr().err.strip()
    assert line.endswith("sample.ema: 31 is not kept; allowed: 0, 30, 5000 (train.ema has no other)")
    assert "\n" not in line
    with pytest.raises(UserError, match=r"31 is not kept; allowed: 0, 30, 5000"):
        mvar.load(name).sample(ema=31)
    with pytest.raises(UserError, match=r"this training keeps none: train.ema is empty"):
        override(CONFIG, {"sample.ema": 30})


@pytest.mark.parametrize("given", [(30, 30), (50, 30), (0,), (-1,), (2.5,)])
def test_half_lives_that_are_none(given):
    with pytest.raises(UserError, match=r"train.ema"):
        override(CONFIG, {"train.ema": given})


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_bytes(store, tmp_path):
    process = in_process(WITH, tmp_path, kill_at("train", 6))
    process.join()
    assert process.exitcode == -signal.SIGKILL and not list(tmp_path.glob("runs/*/model*"))
    execute(WITH, Store(tmp_path))
    name = store.run_of(WITH).name
    ours, whole = outcome(tmp_path / "runs" / name), outcome(store.root / "runs" / name)
    assert {file: ours[file] for file in ours if "ema" in file} == {f: whole[f] for f in whole if "ema" in f} != {}
    assert ours["model.safetensors"] == whole["model.safetensors"]


@pytest.mark.slow
def test_one_that_is_gone_is_made_again_from_the_last_checkpoint_and_nothing_else_is_written(store):
    run = store.run_of(WITH)
    before, others = load_weights(run.weights_of(30))[0], [run.weights_of(half_life) for half_life in (0, 5000)]
    bytes_before = [path.read_bytes() for path in others]
    os.remove(run.weights_of(30))
    assert execute(override(WITH, {"sample.ema": 30, "sample.seed": 9}), store) == DONE
    after = load_weights(run.weights_of(30))[0]
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert [path.read_bytes() for path in others] == bytes_before


@pytest.mark.slow
def test_export_takes_a_half_life(store, tmp_path, capsys):
    run, out = store.run_of(WITH), tmp_path / "mean.safetensors"
    place = ["--results", str(store.root), "--out", str(out)]
    assert main(["export", run.name, *place, "--ema", "31"]) == USER_ERROR
    assert "sample.ema: 31 is not kept; allowed: 0, 30, 5000" in capsys.readouterr().err
    assert main(["export", run.name, *place, "--what", "tokenizer", "--ema", "30"]) == USER_ERROR
    assert "ema: 30 of a tokenizer" in capsys.readouterr().err and not out.exists()
    assert main(["export", run.name, *place, "--ema", "30"]) == OK
    assert capsys.readouterr().out.strip() == f"{out}: generator of {run.name}, mean of half-life 30 images"
    model, mean = load_generator(out)[0].state_dict(), load_weights(run.weights_of(30))[0]
    assert model.keys() == mean.keys() and all(torch.equal(model[name], mean[name]) for name in mean)
