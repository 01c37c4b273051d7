"""The contract of stages: what is done is not touched, one process makes it, and what becomes of it is recorded."""

import ast
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import mvar.runs.stages
from mvar import layout
from mvar.config import SampleConfig, override
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.runs.stages import sample, train
from mvar.runs.stages.contract import SharedStage, Stage, Watch, recorded
from mvar.runs.stages.train import TrainStage
from mvar.runs.states import DONE, FAILED, STOPPED, Stopped
from mvar.runs.store import RunDirectory, StageDirectory, Store
from mvar.runs.wiring import SHARED, Stages

FILES = sorted(path for path in Path(mvar.runs.stages.__file__).parent.glob("*.py") if path.stem != "__init__")


@dataclass(frozen=True)
class Cake(SharedStage):
    """A stage whose work is a note of what is called."""

    calls: list[str] = field(default_factory=list)
    fail: BaseException | None = None
    refusal: UserError | None = None
    name = "cake"

    @property
    def origin(self):
        return {"sample": SampleConfig()}

    def is_done(self):
        return self.directory.state() == DONE

    def confirm(self):
        self.calls.append("confirm")

    def check(self):
        if self.refusal:
            raise self.refusal

    def build(self):
        assert self.directory.is_locked() and self.directory.state() == "running"
        assert (self.directory.path / "config.json").is_file()
        self.calls.append("build")
        if self.fail:
            raise self.fail
        return {"train_s": 2.5}


@pytest.fixture
def directory(tmp_path) -> StageDirectory:
    return StageDirectory(tmp_path / "cake-1")


def test_made_once_then_confirmed_and_not_touched(directory):
    cake = Cake(directory, Watch())
    cake.run()
    assert cake.calls == ["build"] and directory.status()["train_s"] == 2.5
    assert json.loads((directory.path / "config.json").read_text())["sample"]["cfg_scale"] == SampleConfig().cfg_scale
    before = {path: path.stat().st_mtime_ns for path in directory.path.iterdir()}
    cake.run()
    assert cake.calls == ["build", "confirm"]
    assert {path: path.stat().st_mtime_ns for path in directory.path.iterdir()} == before


def test_who_waited_finds_it_done(directory):
    """The second one saw it missing, waits for the lock, looks again."""
    seen = threading.Event()

    class Waiting(Cake):
        def is_done(self):
            try:
                return super().is_done()
            finally:
                seen.set()

    first, second = Cake(directory, Watch()), Waiting(directory, Watch())
    thread = threading.Thread(target=second.run)
    with directory.lock():
        thread.start()
        assert seen.wait(10)
        first.make()
    thread.join(10)
    assert not thread.is_alive() and first.calls == ["build"] and second.calls == []


def test_who_waits_can_be_asked_to_stop(directory):
    with directory.lock(), pytest.raises(Stopped, match="waiting for another process"):
        Cake(directory, Watch(should_stop=lambda: True)).run()


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [(Stopped("asked"), STOPPED, False), (UserError("no egg"), FAILED, False), (ValueError("burnt"), FAILED, True)],
)
def test_what_becomes_of_it_is_recorded(directory, error, state, told):
    with pytest.raises(type(error)):
        Cake(directory, Watch(), fail=error).run()
    assert directory.state() == state and str(error) in directory.status()["reason"]
    assert (directory.path / "error.txt").exists() == told and not directory.is_locked()


def test_what_would_be_for_nothing_is_refused_before_anything_is_written(directory):
    cake = Cake(directory, Watch(), refusal=UserError("no oven"))
    with pytest.raises(UserError, match="no oven"):
        cake.run()
    assert cake.calls == [] and directory.state() == FAILED and not (directory.path / "config.json").exists()


def test_a_watch_tells_and_stops():
    told: list[tuple] = []
    watch = Watch(lambda *call: told.append(call), lambda: len(told) > 2)
    watch.report("a")(1, 3)
    watch.under("b").report("c")(2, 3)
    with pytest.raises(Stopped):
        watch.under("b").heed("c")(3, 3)
    assert told == [("a", 1, 3), ("b", 2, 3), ("b", 3, 3)]


def test_stages_of_a_config_write_nothing_and_know_their_kinds(tmp_path):
    stages = Stages(PRESETS["smoke"], Store(tmp_path / "results"))
    made = [stages.shared(kind) for kind in SHARED]
    made += [stages.train, stages.sample, stages.reject, stages.evaluate, stages.attention]
    assert all(isinstance(stage, Stage) for stage in made) and not (tmp_path / "results").exists()
    assert [stage.name for stage in made[: len(SHARED)]] == list(SHARED)
    with pytest.raises(UserError, match=r"stage: 'train' is unknown; allowed: .*tokenizer"):
        stages.shared("train")


FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which ..."
MORE = "allowed: runtime.%s=auto.*, or fewer images at once"


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError(FULL)


def training_on(place: str, **runtime) -> TrainStage:
    """A stage whose tokenizer and tokens are nothing."""
    config = override(PRESETS["smoke"], {f"runtime.{name}": value for name, value in runtime.items()})
    none = SimpleNamespace(quantizer=None, quantize=None)
    tokenizer = cast("Any", SimpleNamespace(device=torch.device(place), load=lambda: none))
    images = SimpleNamespace(tokens=np.zeros((4, 1)), labels=np.zeros(4))
    tokens = cast("Any", SimpleNamespace(splits=("heldout",), open=lambda split: images))
    return TrainStage(RunDirectory(Path("nowhere")), Watch(), config, tokenizer, tokens)


def test_a_gpu_whose_memory_gets_full_is_a_line_that_says_which_settings_take_less(monkeypatch):
    """In training, in the likelihoods of its log, and while images are drawn."""
    monkeypatch.setattr(TrainStage, "_objective", lambda self, model: SimpleNamespace())
    for module, name in ((train, "fit"), (train, "heldout_nll"), (sample, "draw_images")):
        monkeypatch.setattr(module, name, out_of_memory)
    stage, model = training_on("cpu", micro_batch=4), cast("Any", SimpleNamespace(pos_1LC=torch.zeros(1)))
    with pytest.raises(UserError, match=r"runtime\.micro_batch: 4: .* allocate 2\.00 GiB; " + MORE % "micro_batch"):
        stage._fit(model, None, stage.config.runtime)
    with pytest.raises(UserError, match=r"runtime\.sample_batch: 100: .* 2\.00 GiB; " + MORE % "sample_batch"):
        stage._likelihoods(model)()
    reject = cast("Any", SimpleNamespace(load=lambda: None))
    drawing = sample.SampleStage(stage.directory, stage.watch, stage.config, stage, reject)
    with pytest.raises(UserError, match=r"runtime\.sample_batch: 100: .* 2\.00 GiB; " + MORE % "sample_batch"):
        drawing._draw_rounds(model, cast("Any", None), 0, lambda found: None)


@pytest.mark.parametrize("on", ["GPU", "CPU"])
def test_memory_that_gets_full_in_any_stage_is_one_line_and_no_traceback(tmp_path, on):
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError, match=r"^memory: .* allocate"), recorded(directory, "tokenizer"):
        out_of_memory() if on == "GPU" else torch.empty(2**58)
    status = directory.status()
    assert status and status["state"] == "failed" and "fewer images at once" in status["reason"]
    assert not (tmp_path / layout.ERROR).exists()
    with pytest.raises(RuntimeError, match="odd shapes"), recorded(directory, "tokenizer"):
        raise RuntimeError("odd shapes")
    assert "odd shapes" in (tmp_path / layout.ERROR).read_text()


def test_what_a_training_held_of_a_gpu_is_free_before_images_are_drawn(monkeypatch):
    """Sharded modules hold themselves: until they are collected, torch gives nothing back."""
    freed: list[str] = []
    monkeypatch.setattr(TrainStage, "_objective", lambda self, model: SimpleNamespace())
    monkeypatch.setattr(train, "fit", lambda *_, **__: freed.append("trained"))
    monkeypatch.setattr(train.gc, "collect", lambda: freed.append("collected"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("given back"))
    stage = training_on("cuda", device="cpu")
    stage._fit(cast("Any", None), None, stage.config.runtime)
    assert freed == ["trained", "collected", "given back"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_stage_knows_neither_the_store_nor_the_pipeline(path):
    tree = ast.parse(path.read_text())
    found = {f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    above = {"mvar.runs.store.Store", "mvar.runs.pipeline", "mvar.runs.wiring", "mvar.runs.runner"}
    assert not {name for name in found if any(name == a or name.startswith(a + ".") for a in above)}
    deferred = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
    names = {n.module for n in deferred if isinstance(n, ast.ImportFrom)}
    assert not {name for name in names if name and name.startswith("mvar")}
