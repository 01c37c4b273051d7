"""The training images of a folder, decoded once for the search for near-copies: interrupted, changed, damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar import rows
from mvar.config import RunConfig, override
from mvar.data.crops import ImageSet
from mvar.data.folders import FolderSource
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.evaluation.copies import compared
from mvar.presets import PRESETS
from mvar.runs.stages import vectors
from mvar.runs.stages.contract import Watch
from mvar.runs.stages.vectors import VectorStage
from mvar.runs.states import DONE, STOPPED, Stopped
from mvar.runs.store import Store

NUM_TRAIN = 30


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def config(tmp_path) -> RunConfig:
    for number in range(40):
        write(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png", number)
    values = {"data.root": str(tmp_path / "pictures"), "data.num_classes": 2, "data.heldout_fraction": 0.25}
    return override(PRESETS["imagefolder64"], {**values, "runtime.num_workers": 0})


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The numbers of the images that are decoded, in blocks of 8 and recorded at each."""
    seen, image = [], ImageSet.image
    monkeypatch.setattr(ImageSet, "image", lambda self, i, rng: seen.append(i) or image(self, i, rng))
    monkeypatch.setattr(vectors, "BATCH_SIZE", 8)
    monkeypatch.setattr(rows, "RECORD_EVERY_S", 0.0)
    return seen


def make(config: RunConfig, store: Store, report=lambda done, total: None, checked=None):
    """By a job that has `checked` something; None: by one of its own."""
    watch, found = Watch(lambda stage, done, total: report(done, total)), {} if checked is None else checked
    directory = store.stage("vectors", config.data_id)
    return VectorStage(directory, watch, config.data, config.runtime.num_workers, found).load()


def rows_of(config: RunConfig) -> np.ndarray:
    train = load_images(config.data, "train")
    return compared(torch.from_numpy(np.stack([train.image(i, None) for i in range(len(train))]))).numpy()


@pytest.mark.parametrize("num_workers", [0, 3])
def test_decoded_once_for_a_data_set(config, store, decoded, num_workers):
    config, expected, calls = override(config, {"runtime.num_workers": num_workers}), rows_of(config), []
    decoded.clear()
    found = make(config, store, lambda done, total: calls.append((done, total)))
    assert sorted(decoded) == list(range(NUM_TRAIN))
    assert calls == [(8, NUM_TRAIN), (16, NUM_TRAIN), (24, NUM_TRAIN), (NUM_TRAIN, NUM_TRAIN)]
    assert np.array_equal(found.rows, expected) and expected.shape == (NUM_TRAIN, 3 * 32 * 32)
    assert found.image_shape == (3, 64, 64) and len(found) == NUM_TRAIN
    decoded.clear()
    other = override(config, {"tokenizer.vocab_size": 64, "seed": 1, "evaluation.num_images": 50})
    assert np.array_equal(make(other, store).rows, expected) and not decoded
    assert store.stage("vectors", config.data_id).state() == DONE


def test_the_files_are_looked_at_once_a_job(config, store, decoded, monkeypatch):
    """Whatever runs and floors it compares; by the next job again, and where the rows are gone."""
    looked, fingerprint, checked = [], FolderSource.fingerprint, {}
    monkeypatch.setattr(
        FolderSource, "fingerprint", lambda self, indices: looked.append(1) or fingerprint(self, indices)
    )
    found = [make(config, store, checked=checked) for _ in range(3)]
    assert len(looked) == 1 and all(np.array_equal(found[0].rows, other.rows) for other in found)
    make(config, store)
    assert len(looked) == 2
    (store.stage("vectors", config.data_id).path / "meta.json").unlink()
    decoded.clear()
    make(config, store, checked=checked)
    assert len(looked) == 3 and len(decoded) == NUM_TRAIN


def test_digits_are_in_memory_anyway(store):
    assert make(PRESETS["smoke"], store) is None and not store.root.exists()


@pytest.mark.parametrize("at", [8, 16, NUM_TRAIN])
def test_stopped_and_gone_on_with(config, store, decoded, at):
    expected = rows_of(config)

    def stop(done: int, total: int) -> None:
        if done >= at:
            raise Stopped("asked to stop")

    with pytest.raises(Stopped):
        make(config, store, stop)
    assert store.stage("vectors", config.data_id).state() == STOPPED
    decoded.clear()
    assert np.array_equal(make(config, store).rows, expected)
    assert decoded == list(range(at, NUM_TRAIN))


def test_killed_between_the_last_steps(config, store, decoded, monkeypatch):
    expected = rows_of(config)
    with monkeypatch.context() as patch:
        patch.setattr(vectors, "write_document", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            make(config, store)
    decoded.clear()
    assert np.array_equal(make(config, store).rows, expected) and not decoded


def test_other_files_are_decoded_anew(config, store, decoded, tmp_path):
    make(config, store)
    for number in range(40, 60):
        write(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png", number)
    assert np.array_equal(make(config, store).rows, rows_of(config))


def test_damage_is_found(config, store, decoded):
    make(config, store)
    path = store.stage("vectors", config.data_id).path / "vectors.bin"
    data = path.read_bytes()
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"vectors\.bin: missing or damaged \(wrong checksum\); remove its folder"):
            make(config, store)
