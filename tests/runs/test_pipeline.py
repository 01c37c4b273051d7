"""The pipeline on real organs at toy size: killed anywhere, it ends in the bytes of an uninterrupted run."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_runs import CONFIG, in_process, kill_at, outcome

from mvar import rows
from mvar.checkpoints.weights import load_weights
from mvar.config import override
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.runs import pipeline
from mvar.runs.gpu_plan import GB, shared_gb
from mvar.runs.pipeline import execute
from mvar.runs.stages.contract import Watch
from mvar.runs.stages.sample import SampleStage
from mvar.runs.stages.tokenizer import TokenizerStage
from mvar.runs.states import DONE, FAILED, STOPPED
from mvar.runs.store import Store
from mvar.runs.wiring import SHARED, Stages


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The results of an uninterrupted run."""
    root = tmp_path_factory.mktemp("uninterrupted")
    assert execute(CONFIG, Store(root)) == DONE
    return root


def test_run_directory_is_complete(finished):
    store = Store(finished)
    run = store.run(CONFIG.run_id)
    assert store.is_done(CONFIG)
    assert run.config() == CONFIG
    assert run.status()["state"] == DONE and run.status()["reason"] is None
    assert run.status()["step"] == run.status()["steps"] == CONFIG.train.steps
    record = run.evaluations()[CONFIG.evaluation_id]
    assert {"eval/fid", "eval/is", "eval/kid", "eval/precision", "eval/recall", "eval/nll_bits_per_token"} <= set(
        record["metrics"]
    )
    assert record["timing"]["train_s"] > 0 and record["timing"]["sample_s"] > 0
    assert record["reference"]["split"] == "heldout"
    env = json.loads((run.path / "env.json").read_text())
    assert env["versions"]["torch"] and env["num_threads"] >= 1
    assert store.floors(CONFIG)["floor/fid_reconstruction"] > 0
    assert 0 <= store.extractor(CONFIG)["heldout_accuracy"] <= 1
    assert store.tokenizer_quality(CONFIG)["vocab_size"] == 16
    rows = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
    assert rows == sorted(set(rows)) and rows[-1] == CONFIG.train.steps


def test_the_plan_knows_the_size_of_token_caches(finished):
    """To the byte; of data that nobody has looked at it says nothing."""
    store = Store(finished)
    folder = store.stage("tokens", CONFIG.tokens_id).path
    there = sum(path.stat().st_size for path in folder.glob("*/*.bin"))
    assert shared_gb([CONFIG, CONFIG], store) == pytest.approx(there / GB, rel=1e-12) and there > 0
    assert shared_gb([CONFIG, PRESETS["imagenet256-d16"]], store) is None


def test_samples_are_balanced_and_in_adms_layout(finished):
    folder = Store(finished).run(CONFIG.run_id).samples(CONFIG.evaluation_id)
    drawn = np.load(folder / "samples.npz")
    assert drawn["arr_0"].dtype == np.uint8 and drawn["arr_0"].shape == (40, 8, 8, 1)
    assert np.bincount(drawn["labels"]).tolist() == [4] * 10
    assert len(np.unique(drawn["arr_0"].reshape(40, -1), axis=0)) > 20  # images differ
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("partial*"))


KILLS = [
    ("tokenizer", 1),
    ("tokenizer", 6),
    ("tokens", 1),
    ("train", 2),
    ("train", 6),
    ("train", 9),
    ("sample", 20),
    ("sample", 40),
    ("extractor", 5),
    ("floors", 2),
    ("evaluate", 1),
]


@pytest.mark.slow
def test_killed_in_every_stage(finished, tmp_path):
    """One directory, killed at each of these points in turn: every resumption starts from what the last one left."""
    for stage, step in KILLS:
        killed = in_process(CONFIG, tmp_path, kill_at(stage, step))
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, (stage, step)
        assert not Store(tmp_path).is_done(CONFIG)
    assert execute(CONFIG, Store(tmp_path)) == DONE
    assert outcome(tmp_path) == outcome(finished)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "step"), [("tokenizer", 6), ("train", 6), ("sample", 20)])
def test_killed_once(finished, tmp_path, stage, step):
    killed = in_process(CONFIG, tmp_path, kill_at(stage, step))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert execute(CONFIG, Store(tmp_path)) == DONE
    assert outcome(tmp_path) == outcome(finished)


def test_stopped_in_every_stage(finished, tmp_path):
    store = Store(tmp_path)
    for stage, step in [("tokenizer", 3), ("tokens", 1), ("train", 5), ("sample", 20), ("extractor", 3)]:
        reached: list[str] = []

        def progress(name: str, done: int, total: int, stage=stage, step=step, reached=reached) -> None:
            if name == stage and done >= step:
                reached.append(name)

        assert execute(CONFIG, store, progress, lambda reached=reached: bool(reached)) == STOPPED, stage
        assert store.run(CONFIG.run_id).state() == STOPPED
    assert execute(CONFIG, store) == DONE
    assert outcome(tmp_path) == outcome(finished)


def test_an_evaluation_stops_at_any_batch(finished, tmp_path):
    """In each of its parts, and in the floors: the metrics that are computed stay, and the next call adds the rest."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    store = Store(tmp_path)
    run, extractor = store.run(CONFIG.run_id), store.stage("extractor", CONFIG.extractor_id)
    (run.path / "eval.json").unlink()
    (extractor.path / "floors.json").unlink()
    calls: list[tuple[str, int]] = []
    stop_at = ("", 0)

    def progress(stage: str, done: int, total: int) -> None:
        calls.append((stage, done))

    def stopped() -> bool:
        return bool(calls) and calls[-1][0] == stop_at[0] and calls[-1][1] >= stop_at[1]

    for stage, at, kept in [  # a thousand for each metric that is missing
        *(("floors", 1, 0), ("floors", 1000, 0)),
        *(("evaluate", 1, 0), ("evaluate", 500, 0), ("evaluate", 4500, 5), ("evaluate", 1500, 6)),
    ]:
        calls.clear()
        stop_at = (stage, at)
        assert execute(CONFIG, store, progress, stopped) == STOPPED, stop_at
        assert run.state() == STOPPED and not store.is_done(CONFIG)
        there = run.evaluations().get(CONFIG.evaluation_id, {"measured": {}})["measured"]
        assert len(there) == kept, stop_at  # what was computed stays
        assert (extractor.path / "floors.json").exists() == (stage == "evaluate")
    assert execute(CONFIG, store) == DONE
    assert outcome(tmp_path) == outcome(finished)


def test_a_likelihood_that_cannot_be_logged_ends_no_training(finished, tmp_path, monkeypatch):
    """Logits that are not finite are the loop's to judge; the row goes without."""

    def fails(*arguments, **options):
        raise UserError("model: its logits are not finite")

    shutil.copytree(finished / "stages", tmp_path / "stages")
    monkeypatch.setattr("mvar.runs.stages.train.heldout_nll", fails)
    assert execute(CONFIG, Store(tmp_path)) == DONE
    logged, before = ((Store(root).run_of(CONFIG).metrics.read_text().splitlines()) for root in (tmp_path, finished))
    assert len(logged) == len(before)
    assert "heldout/nll_bits_per_token" in json.loads(before[-1])
    assert "heldout/nll_bits_per_token" not in json.loads(logged[-1])


def test_two_processes_make_one_run(finished, tmp_path):
    pair = [in_process(CONFIG, tmp_path) for _ in range(2)]
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    assert outcome(tmp_path) == outcome(finished)


def test_done_is_not_touched(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert execute(override(CONFIG, {"runtime.log_every": 1}), Store(finished)) == DONE
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_another_evaluation_uses_the_same_weights(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    store = Store(tmp_path)
    run = store.run(CONFIG.run_id)
    weights, other = run.weights.stat().st_mtime_ns, override(CONFIG, {"sample.cfg_scale": 0})
    first = run.evaluations()[CONFIG.evaluation_id]
    assert execute(other, store) == DONE
    assert run.weights.stat().st_mtime_ns == weights
    assert run.evaluations()[CONFIG.evaluation_id] == first
    assert set(run.evaluations()) == {CONFIG.evaluation_id, other.evaluation_id}
    unguided = run.evaluations()[other.evaluation_id]["cost"]["sample_flops"]
    assert unguided < first["cost"]["sample_flops"] < 2 * unguided
    assert store.is_done(CONFIG) and store.is_done(other)


def test_failure_is_recorded_raised_and_mended(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "stages", tmp_path / "stages")
    store = Store(tmp_path)

    def broken(*_):
        raise ZeroDivisionError("first line\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(SampleStage, "run", broken)
        with pytest.raises(ZeroDivisionError):
            execute(CONFIG, store)
    status = store.run(CONFIG.run_id).status()
    assert (status["state"], status["stage"]) == (FAILED, "sample")
    assert status["reason"] == "ZeroDivisionError: first line second line"
    assert "Traceback" in (store.run(CONFIG.run_id).path / "error.txt").read_text()
    assert execute(CONFIG, store) == DONE
    (store.run(CONFIG.run_id).path / "error.txt").unlink()
    assert outcome(tmp_path) == outcome(finished)


def test_full_disk_while_sampling(tmp_path, finished, monkeypatch):
    import errno

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    other, store = override(CONFIG, {"sample.seed": 5}), Store(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "partial.bin")

    with monkeypatch.context() as patch:
        patch.setattr(rows.Rows, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            execute(other, store)
    assert "No space left" in store.run(other.run_id).status()["reason"]
    assert execute(other, store) == DONE


def test_an_empty_image_folder_is_a_users_mistake(tmp_path):
    (tmp_path / "images").mkdir()
    config = override(CONFIG, {"data.name": "imagefolder", "data.root": str(tmp_path / "images")})
    with pytest.raises(UserError, match="images"):
        execute(config, Store(tmp_path / "results"))
    status = Store(tmp_path / "results").run(config.run_id).status()
    assert status["state"] == FAILED and "\n" not in status["reason"]
    assert not (tmp_path / "results" / "runs" / config.run_id / "error.txt").exists()


def test_a_published_tokenizer_is_loaded_not_trained(finished, tmp_path, monkeypatch):
    tokenizer = Store(finished).stage("tokenizer", CONFIG.tokenizer_id).path / "tokenizer.safetensors"
    state, _ = load_weights(tokenizer)
    torch.save(state, tmp_path / "vae.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "vae.pth").read_bytes()[:-500])
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "other.pth")
    monkeypatch.setenv("VAE_DIR", str(tmp_path))

    def build(name: str) -> Path:
        config = override(CONFIG, {"tokenizer.checkpoint": f"$VAE_DIR/{name}"})
        stage = Stages(config, Store(tmp_path)).tokenizer
        stage.run()
        return stage.directory.path

    loaded, _ = load_weights(build("vae.pth") / "tokenizer.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    for name, message in (("no.pth", "no file"), ("cut.pth", "truncated"), ("other.pth", "extra")):
        with pytest.raises(UserError, match=f"tokenizer.checkpoint.*{message}"):
            build(name)


def test_a_shared_stage_is_made_as_in_a_run(finished, monkeypatch):
    """Where TF32 is off, say: torch's convolutions have it on by default, and tokens would be others."""
    told = []
    monkeypatch.setattr(pipeline, "prepare_process", told.append)
    pipeline.execute_shared("tokens", CONFIG, Store(finished))
    assert told == [CONFIG.runtime]


def test_stages_are_made_once(finished, monkeypatch):
    """A second run of the same data trains neither tokenizer nor classifier again."""

    def refuse(*_):
        raise AssertionError("a finished stage was made again")

    for name in ("_train", "load"):
        monkeypatch.setattr(TokenizerStage, name, refuse)
    stages = Stages(override(CONFIG, {"seed": 1}), Store(finished), Watch(refuse))
    for kind in SHARED:
        stages.shared(kind).run()
