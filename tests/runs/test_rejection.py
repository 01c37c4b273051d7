"""Rejection sampling through the pipeline: one training, two evaluations, the better-recognised images kept."""

import shutil

import numpy as np
import pytest
import torch

from mvar.config import override
from mvar.presets import PRESETS
from mvar.runs.pipeline import execute
from mvar.runs.store import Store
from mvar.runs.wiring import Stages

PLAIN = override(
    PRESETS["smoke"],
    {
        "model.depth": 1,
        "model.width": 16,
        "train.steps": 4,
        "tokenizer.train.steps": 4,
        "evaluation.num_images": 20,
        "evaluation.classifier_steps": 20,
        "runtime.sample_batch": 7,
        "runtime.threads": 1,
    },
)
BEST = override(PLAIN, {"sample.candidates": 3})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("rejection"))
    for config in (PLAIN, BEST):
        assert execute(config, store) == "done"
    return store


def drawn(store, config):
    return np.load(store.run(config.run_id).samples(config.evaluation_id) / "samples.npz")


def test_one_training_two_records(store):
    assert len(store.runs()) == 1
    records = store.run(PLAIN.run_id).evaluations()
    plain, best = records[PLAIN.evaluation_id], records[BEST.evaluation_id]
    assert (plain["cost"]["acceptance_rate"], best["cost"]["acceptance_rate"]) == (1, pytest.approx(1 / 3))
    assert best["sample"]["candidates"] == 3
    assert best["cost"]["sample_flops"] == 3 * plain["cost"]["sample_flops"]
    assert best["cost"]["num_params"] == plain["cost"]["num_params"]


def test_the_run_keeps_the_settings_that_it_was_made_with(store):
    assert store.run(PLAIN.run_id).config().sample == PLAIN.sample


def test_every_kept_image_is_at_least_as_surely_of_its_class_as_the_plain_one(store):
    score = Stages(BEST, store).reject.load()
    plain, best = drawn(store, PLAIN), drawn(store, BEST)
    assert np.array_equal(plain["labels"], best["labels"])
    labels = torch.from_numpy(best["labels"])
    gain = score(best["arr_0"], labels) - score(plain["arr_0"], labels)
    assert (gain >= 0).all()
    same = (plain["arr_0"] == best["arr_0"]).all((1, 2, 3))
    assert 0 < same.sum() < len(same) and (gain[~same] > 0).all()  # the plain image is a candidate: some stay
    assert Stages(PLAIN, store).reject.load() is None


def test_batches_do_not_matter(store, tmp_path):
    copy = Store(tmp_path / "copy")
    shutil.copytree(store.root, copy.root)
    run = copy.run(BEST.run_id)
    shutil.rmtree(run.samples(BEST.evaluation_id))
    document = run.path / "eval.json"
    document.unlink()
    assert execute(override(BEST, {"runtime.sample_batch": 20}), copy) == "done"
    assert np.array_equal(drawn(copy, BEST)["arr_0"], drawn(store, BEST)["arr_0"])
