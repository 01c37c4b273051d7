"""Data that are not in memory go the way of folders, whatever their layout: surveyed at launch, decoded once."""

import numpy as np
import pytest
import torch
from layouts import LABELS, PIXELS, written

from mvar import layout as names
from mvar.cli import main
from mvar.commands.run import Run
from mvar.config import DataConfig, override
from mvar.data.splits import load_images
from mvar.evaluation.copies import compared
from mvar.presets import PRESETS
from mvar.runs.pipeline import execute
from mvar.runs.stages.contract import Watch
from mvar.runs.stages.vectors import VectorStage
from mvar.runs.states import DONE
from mvar.runs.store import Store

STORED = ("npy", "tar", "tar_json", "parquet", "ilsvrc", "torchvision")
TINY = {
    "data.image_size": 28,
    "data.resize_factor": 1.0,
    "tokenizer.patch_sides": "1,2,7",
    "tokenizer.channel_multipliers": "1,1,1",
    "tokenizer.width": 8,
    "tokenizer.vocab_size": 16,
    "tokenizer.train.steps": 2,
    "model.depth": 1,
    "model.width": 16,
    "model.num_heads": 2,
    "train.steps": 2,
    "train.batch_size": 4,
    "evaluation.num_images": 10,
    "evaluation.classifier_steps": 2,
    "evaluation.kid_subset_size": 5,
    "runtime.threads": 1,
}


def settings_of(data: DataConfig) -> dict[str, str]:
    extra = data.model_dump(mode="json").get(data.name, {})
    own = {f"data.{data.name}.{key}": value for key, value in extra.items() if isinstance(value, str)}
    return {"data.name": data.name, "data.root": str(data.root), **own}


@pytest.mark.parametrize("layout", STORED)
def test_what_is_decoded_once_is_kept(layout, tmp_path):
    data = written(layout, tmp_path / "set")
    stage = VectorStage(Store(tmp_path / "results").stage("vectors", "x"), Watch(), data, 0, {})
    assert not stage.is_done()
    vectors = stage.load()
    assert vectors is not None and stage.is_done()
    train = load_images(data, "train")
    prepared = torch.from_numpy(np.stack([train.image(i, None) for i in range(len(train))]))
    assert np.array_equal(vectors.rows, compared(prepared).numpy())


def test_nothing_is_kept_of_what_is_in_memory(tmp_path):
    stage = VectorStage(Store(tmp_path).stage("vectors", "x"), Watch(), DataConfig(), 0, {})
    assert stage.is_done() and stage.load() is None


@pytest.mark.parametrize("layout", STORED[:-1])  # MNIST's two parts are the same pictures here, which is refused
def test_a_launch_says_what_the_data_hold(layout, tmp_path, capsys):
    values = TINY | settings_of(written(layout, tmp_path / "set"))
    command = Run(
        sweeps=("mixers",),
        preset="smoke",
        set=(tuple(f"{name}={value}" for name, value in values.items()),),
        results=tmp_path / "results",
    )
    _, configs, _ = command.planned()
    assert {config.data.reading for config in configs} == {1}  # has no second reading: ids say nothing of it
    out, err = capsys.readouterr()
    assert f"data: {tmp_path / 'set'}: " in out and "of 10 classes" in out and "modes L 20" in out
    assert not err and len(list((tmp_path / "results").glob(f"{names.STAGES}/data-*/{names.SUMMARY}"))) == 1


def test_held_out_images_that_are_training_images_are_refused_by_every_layout(tmp_path, capsys):
    values = TINY | settings_of(written("tar", tmp_path / "set")) | {"data.heldout_root": str(tmp_path / "set")}
    settings = [f"{name}={value}" for name, value in values.items()]
    arguments = ["run", "mixers", "--preset", "smoke", "--results", str(tmp_path / "r"), "--set", *settings]
    assert main(arguments) == 2
    assert "data.heldout_root: 20 of 20 held-out images compared are also training images" in capsys.readouterr().err


def test_a_held_out_root_that_a_source_does_not_take(tmp_path, capsys):
    values = {"data.name": "fashion", "data.heldout_root": str(tmp_path)}
    settings = [f"{name}={value}" for name, value in values.items()]
    assert main(["run", "mixers", "--preset", "fashion32-small", "--set", *settings]) == 2
    said = capsys.readouterr().err
    assert "data.name=fashion has held-out images of its own; allowed: with data.name=imagefolder, ilsvrc, npy" in said


def test_from_shards_to_an_evaluation(tmp_path):
    config = override(PRESETS["smoke"], TINY | settings_of(written("tar", tmp_path / "set")))
    store = Store(tmp_path / "results")
    assert execute(config, store) == DONE
    assert len(list((tmp_path / "results" / names.STAGES).glob("vectors-*"))) == 1
    assert PIXELS.shape[0] == len(LABELS) == 20
