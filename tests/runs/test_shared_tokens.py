"""A finished token cache and its images, in a job of several processes: one looks at the images, all train on it."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar import layout
from mvar.cluster import job
from mvar.cluster.submission import Work
from mvar.config import override
from mvar.errors import UserError
from mvar.files import write_json
from mvar.presets import PRESETS
from mvar.runs import pipeline, workers
from mvar.runs.stages.contract import Watch
from mvar.runs.stages.tokens import TokenStage
from mvar.runs.store import Store
from mvar.runs.wiring import Stages
from mvar.training import distributed

CONFIG = override(
    PRESETS["smoke"],
    {
        "data.name": "imagefolder",
        "data.num_classes": 2,
        "tokenizer.train.steps": 2,
        "tokenizer.train.batch_size": 4,
        "model.depth": 1,
        "model.width": 16,
        "train.steps": 2,
        "train.batch_size": 4,
        "runtime.device": "cpu",
        "runtime.threads": 1,
        "data.root": "$PICTURES",
    },
)
COUNT = 12


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(9, 9), dtype=np.uint8)).save(path)
    monkeypatch.setenv("PICTURES", str(root))
    return root


def looks(monkeypatch, pictures: Path) -> list[str]:
    """What this process asks the file system about the pictures from now on."""
    found: list[str] = []

    def noting(function):
        def noted(path, *args, **kwargs):
            if str(path).startswith(str(pictures)):
                found.append(str(path))
            return function(path, *args, **kwargs)

        return noted

    for name in ("stat", "scandir"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    return found


def take_part(root: Path, pictures: Path, rank: int) -> None:
    """Train in one of two processes; leaves how often each picture was looked at."""
    with pytest.MonkeyPatch.context() as patch, distributed.joined(rank, 2, rank, 2, root / "meeting.json"):
        found = looks(patch, pictures)
        if rank:
            pipeline.follow(Store(root), lambda: False)
        else:
            Stages(CONFIG, Store(root), Watch()).train.run()
        stats = [sum(path.endswith(f"/{i}.png") for path in found) for i in range(COUNT)]
        (root / f"looks-{rank}").write_text(f"{len(found)} {max(stats)} {sum(map(bool, stats))}")


@pytest.mark.slow
def test_one_process_of_a_job_looks_at_the_images_once(tmp_path, pictures):
    store = Store(tmp_path)
    stages = Stages(CONFIG, store)
    stages.run.path.mkdir(parents=True)
    stages.run.write_config(CONFIG)
    for stage in (stages.tokenizer, stages.tokens):
        stage.run()
    group = [
        multiprocessing.get_context("fork").Process(target=take_part, args=(tmp_path, pictures, rank), daemon=True)
        for rank in (0, 1)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(60)
    assert [process.exitcode for process in group] == [0, 0]
    assert stages.run.weights.is_file()
    assert (tmp_path / "looks-1").read_text() == "0 0 0"
    most, seen = map(int, (tmp_path / "looks-0").read_text().split()[1:])
    assert (most, seen) == (1, COUNT)


def test_the_runs_of_a_job_look_at_the_images_once(tmp_path, pictures, monkeypatch):
    stages = Stages(CONFIG, Store(tmp_path))
    for stage in (stages.tokenizer, stages.tokens):
        stage.run()
    found, job = looks(monkeypatch, pictures), Store(tmp_path)
    for width in (16, 32):
        run = Stages(override(CONFIG, {"model.width": width}), job)
        run.tokens.run()
        caches = [run.tokens.open(split) for split in ("train", "heldout")]
        assert sum(len(cache.tokens) for cache in caches) == COUNT
        assert [sum(path.endswith(f"/{i}.png") for path in found) for i in range(COUNT)] == [1] * COUNT

    ids = stages.tokens.open("train").meta["ids"]
    with pytest.raises(UserError, match="built from something else"):
        Stages(CONFIG, Store(tmp_path)).tokens.take("train", ids | {"data": "other"})
    (pictures / "a" / "0.png").write_bytes(b"another size")
    assert Stages(CONFIG, job).tokens.open("train").meta["ids"] == ids  # known in this job
    with pytest.raises(UserError, match=r"data is .*, needed is"):
        Stages(CONFIG, Store(tmp_path)).tokens.open("train")
    write_json(caches[0].directory / layout.META, {**caches[0].meta, "ids": ids | {"data": "other"}})
    with pytest.raises(UserError, match="data is 'other', needed is"):
        Stages(CONFIG, job).tokens.open("train")  # another cache than the one that was looked at


def test_so_do_the_tasks_of_a_worker(tmp_path, monkeypatch):
    """Which each have a store of their own."""
    stores = []
    monkeypatch.setattr(workers._Worker, "board", workers.Board(multiprocessing.get_context("spawn"), 1), raising=False)
    monkeypatch.setattr(workers._Worker, "number", 0, raising=False)
    monkeypatch.setattr(workers, "_work", lambda kind, config, store, run: stores.append(store) or ("done", "", False))
    for _ in range(2):
        assert workers.work("tokens", CONFIG.model_dump(mode="json"), str(tmp_path)).state == "done"
    assert stores[0] is not stores[1] and stores[0].checked is stores[1].checked


def test_a_shared_stage_computes_as_its_run_whatever_its_process_did_before(tmp_path, monkeypatch):
    """In fp32 by `runtime.tf32`, in a worker and in SLURM's job; torch's own default is TF32 in convolutions."""
    seen, threads = [], torch.get_num_threads()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    monkeypatch.setattr(TokenStage, "run", lambda self: seen.append(now()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(workers._Worker, "threads", threads, raising=False)
    process = object.__new__(job._Process)
    try:
        for tf32 in (False, True):
            config = override(CONFIG, {"runtime.tf32": tf32, "runtime.device": "auto"})
            for door in (
                lambda of: workers._work("tokens", of, Store(tmp_path), ""),
                lambda of: process._make(Work("tokens", "tokens-x", of), Store(tmp_path)),
            ):
                torch.set_float32_matmul_precision("highest" if tf32 else "high")
                torch.backends.cudnn.allow_tf32 = not tf32
                door(config)
        assert seen == [("highest", False)] * 2 + [("high", True)] * 2
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.set_num_threads(threads)
