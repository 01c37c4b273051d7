"""Several processes write one token cache: its bytes are those of one process, stopped or not. And fresh crops."""

import json
from functools import partial
from pathlib import Path

import pytest
from joined_processes import together
from safetensors.torch import load_file
from tiny_runs import CONFIG
from torch.testing import assert_close

from mvar import rows as rows_module
from mvar.config import RunConfig, override
from mvar.errors import UserError
from mvar.runs.stages.contract import Watch
from mvar.runs.states import Stopped
from mvar.runs.store import RunDirectory, Store
from mvar.runs.wiring import Stages

STOPPED = [(3, None), *(pytest.param(2, on, marks=pytest.mark.slow) for on in (2, 1))]
CROPS = override(CONFIG, {"train.crops": 2, "runtime.device": "cpu", "runtime.threads": 1})
ONLINE = override(
    CONFIG, {"train.tokens": "online", "runtime.num_workers": 1, "runtime.device": "cpu", "runtime.threads": 1}
)
NAMES = [f"{split}/{name}" for split in ("train", "heldout") for name in ("tokens.bin", "labels.bin", "meta.json")]


def build(store: Store) -> None:
    Stages(CROPS, store, Watch()).tokens.run()


def built(store: Store) -> dict[str, bytes]:
    folder = store.stage("tokens", CROPS.tokens_id).path
    return {name: (folder / name).read_bytes() for name in NAMES}


@pytest.mark.parametrize(("world", "stopped_on"), STOPPED)
def test_the_number_of_processes_does_not_matter(store, tmp_path, monkeypatch, world, stopped_on):
    """22 batches, the last one smaller, no multiple of the processes; stopped on two or on one, ended on the other."""
    monkeypatch.setattr(rows_module, "RECORD_EVERY_S", 0.0)
    record = store.stage("tokens", CROPS.tokens_id).path / "train" / "progress.json"
    if stopped_on == 1:
        seen: list[int] = []
        with pytest.raises(Stopped):
            watch = Watch(lambda *_: seen.append(0), lambda: len(seen) > 4)
            Stages(CROPS, store, watch).tokens.run()
    if stopped_on == 2:
        together(store.root, world, build, rounds=3)
        Stages(CROPS, store, Watch()).tokens.run()
    else:
        assert record.is_file() == (stopped_on == 1)
        together(store.root, world, build)
    now = built(store)
    (store.stage("tokens", CROPS.tokens_id).path / "status.json").unlink()
    for name in NAMES:
        (store.stage("tokens", CROPS.tokens_id).path / name).unlink()
    Stages(CROPS, store, Watch()).tokens.run()
    assert now == built(store)


def trained(store: Store, folder: Path, stop_after: int = 0, config: RunConfig = ONLINE) -> Stages:
    """A run on fresh crops, asked to stop after so many steps and gone on with."""
    directory = RunDirectory(folder)
    folder.mkdir()
    directory.write_config(config)
    stages = Stages(config, store, Watch(), directory)
    stages.tokens.run()
    if stop_after:
        steps: list[int] = []
        watch = Watch(lambda *_: steps.append(0), lambda: len(steps) >= stop_after)
        with pytest.raises(Stopped):
            Stages(config, store, watch, directory).train.run()
    stages.train.run()
    return stages


@pytest.mark.slow
def test_a_run_whose_weights_are_shared_is_that_of_one_process(store):
    """The model is made without values: the first process gives them, or a checkpoint does. Its log has the likelihood
    of the whole model; before its first step it has taken over what it starts from."""
    source = trained(store, store.root / "source").run.weights
    started = override(ONLINE, {"train.init_from": str(source), "seed": 1})
    whole = trained(store, store.root / "whole", config=started).run
    shared = override(started, {"runtime.strategy": "fsdp"})
    together(store.root, 2, partial(trained, folder=store.root / "shared", stop_after=3, config=shared))
    found = RunDirectory(store.root / "shared")
    one, two = load_file(whole.weights), load_file(found.weights)
    for name, value in one.items():
        assert_close(two[name], value, rtol=0, atol=1e-5)
    assert (found.path / "start.json").read_bytes() == (whole.path / "start.json").read_bytes()
    wanted, rows = ([json.loads(line) for line in (run.path / "metrics.jsonl").open()] for run in (whole, found))
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        for name in row.keys() - {"train/step_ms", "train/elapsed_s", "train/tokens_per_s"}:
            assert row[name] == pytest.approx(other[name], rel=1e-4), name
    assert any("heldout/nll_bits_per_token" in row for row in rows)


def test_a_run_on_fresh_crops_keeps_no_cache_of_training_images(store):
    """Stopped and gone on with, its weights are the same, byte for byte; its log has the likelihood of both splits.
    Two processes, whose workers decode, end where one does."""
    whole, stopped = trained(store, store.root / "whole"), trained(store, store.root / "stopped", stop_after=3)
    assert whole.run.weights.read_bytes() == stopped.run.weights.read_bytes()
    log = (stopped.run.path / "metrics.jsonl").read_text()
    assert "train/nll_bits_per_token" in log and "heldout/nll_bits_per_token" in log
    assert not (store.stage("tokens", ONLINE.tokens_id).path / "train").exists()
    together(store.root, 2, partial(trained, folder=store.root / "shared"))
    one, two = (load_file(store.root / name / "model.safetensors") for name in ("whole", "shared"))
    for name, value in one.items():
        assert_close(two[name], value, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"split: train: no cache of it is kept, .*online.*; allowed: heldout"):
        whole.tokens.open("train")


def test_crops_of_a_cache_beside_fresh_ones_are_refused():
    with pytest.raises(UserError, match=r"train\.crops: 4 of a cache, beside train\.tokens=online; allowed: 1"):
        override(ONLINE, {"train.crops": 4})
