"""Trackers: the rows of metrics.jsonl elsewhere too; never a reason for a training to end, or to be another one."""

import os
import sys
from importlib import import_module
from types import ModuleType

import pytest
from toy_objective import RUNTIME, Toy, assert_identical, rows_of, toy_optim

from mvar.cli import main
from mvar.errors import USER_ERROR, UserError
from mvar.training.loop import fit


def stub(monkeypatch, name: str, with_id: bool = False) -> list[tuple]:
    """A package with the API of trackio, or of wandb (`with_id`), and what it is called with."""
    calls, module = [], ModuleType(name)

    def init(project, name, config, resume):
        print("a greeting")
        calls.append(("init", project, name, resume))

    def init_with_id(project, name, config, resume, id):
        init(project, id, config, resume)

    module.init = init_with_id if with_id else init
    module.log = lambda metrics, step: calls.append(("log", step, metrics["train/loss"]))
    module.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def tracked(name: str, project: str = "mvar"):
    return RUNTIME.model_copy(update={"tracking": name, "tracking_project": project})


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_has_the_rows_and_goes_on_where_the_training_does(name, tmp_path, monkeypatch, capsys):
    calls = stub(monkeypatch, name, with_id=name == "wandb")
    with pytest.raises(KeyboardInterrupt):
        fit(Toy(die_at=8), toy_optim(), tmp_path / "killed", tracked(name, "mine"), seed=3)
    begun = len(calls)
    fit(Toy(), toy_optim(), tmp_path / "killed", tracked(name, "mine"), seed=3)
    fit(Toy(), toy_optim(), tmp_path / "plain", RUNTIME, seed=3)
    assert [call for call in calls if call[0] == "init"] == [("init", "mine", "killed", "allow")] * 2
    logged = dict(call[1:] for call in calls if call[0] == "log")
    assert logged == {row["step"]: row["train/loss"] for row in rows_of(tmp_path / "killed")}
    assert min(step for _, step, *_ in calls[begun + 1 : -1]) > 6  # after the checkpoint that it went on from
    assert calls[-1] == ("finish",)
    assert_identical(tmp_path / "plain", tmp_path / "killed")
    assert capsys.readouterr().out == ""


def test_a_tracker_that_fails_ends_no_training(tmp_path, monkeypatch, capsys):
    calls = stub(monkeypatch, "trackio")

    def fail(metrics, step):
        raise RuntimeError("no network")

    monkeypatch.setattr(sys.modules["trackio"], "log", fail)
    assert fit(Toy(), toy_optim(), tmp_path, tracked("trackio"), seed=3).finished
    assert len(rows_of(tmp_path)) == 7 and len(calls) == 1
    assert capsys.readouterr().err.count("no network; the rest is in metrics.jsonl alone") == 1
    monkeypatch.setattr(sys.modules["trackio"], "init", fail)
    with pytest.raises(UserError, match=r"runtime\.tracking=trackio: TypeError: "):
        fit(Toy(), toy_optim(), tmp_path / "other", tracked("trackio"), seed=3)


@pytest.mark.parametrize(
    ("setting", "package"),
    [
        ("tracking=trackio", "trackio"),
        ("tracking=wandb", "wandb"),
        ("tracking=tensorboard", "tensorboard"),
        ("tensorboard=true", "tensorboard"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_launched(setting, package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    words = ["run", "mixers", "--preset", "smoke", "--results", str(tmp_path), "--set", f"runtime.{setting}"]
    assert main(words) == USER_ERROR
    assert (
        capsys.readouterr().err
        == f"mvar: error: runtime.{setting} needs the package {package}; pip install {package}\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("field", [{"tracking": "tensorboard"}, {"tensorboard": True}])
def test_tensorboard(field, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(Toy(), toy_optim(), tmp_path, RUNTIME.model_copy(update=field), seed=3)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = {e.step: e.value for e in events.Scalars("train/loss")}
    assert logged == pytest.approx({row["step"]: row["train/loss"] for row in rows_of(tmp_path)})


def test_trackio_itself(tmp_path, monkeypatch):
    """Not among the tools that the tests need: it wants an older Pillow. Where it is installed, it is asked; `.ci/run`
    has it, with what it needs, in a folder of its own."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "tracked"))
    trackio = import_module("trackio") if "REQUIRE_TRACKIO" in os.environ else pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    fit(Toy(), toy_optim(), tmp_path / "here", tracked("trackio", "mine"), seed=3)
    [run] = trackio.Api().runs("mine")
    logged = {row["step"]: row["train/loss"] for row in SQLiteStorage.get_logs("mine", "here")}
    assert run.name == "here" and logged == {row["step"]: row["train/loss"] for row in rows_of(tmp_path / "here")}
