"""The store: status, locks, identity, and what is said of damaged files."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from mvar.config import RunConfig, override
from mvar.errors import UserError, begin_command
from mvar.files import write_json
from mvar.runs.documents import Damaged, read_document
from mvar.runs.states import DONE, FAILED, RUNNING, Stopped
from mvar.runs.store import Store, check_writable, one_line

CONFIG = RunConfig()


def finish(store: Store, config: RunConfig) -> None:
    """Make a run look finished."""
    run = store.run(config.run_id)
    run.write_config(config)
    run.weights.write_bytes(b"weights")
    run.add_evaluation(config.evaluation_id, {"metrics": {"eval/fid": 1.0}})
    run.write_status(DONE, "evaluate")


def test_done_needs_status_weights_and_this_evaluation(tmp_path):
    store = Store(tmp_path)
    assert not store.is_done(CONFIG)
    finish(store, CONFIG)
    assert store.is_done(CONFIG)
    assert not store.is_done(override(CONFIG, {"sample.cfg_scale": 3.0}))  # same run, another evaluation
    assert not store.is_done(override(CONFIG, {"seed": 1}))
    store.run(CONFIG.run_id).write_status(FAILED, "evaluate")
    assert not store.is_done(CONFIG)
    store.run(CONFIG.run_id).write_status(DONE, "evaluate")
    store.run(CONFIG.run_id).weights.unlink()
    assert not store.is_done(CONFIG)


def test_runtime_is_not_identity(tmp_path):
    store = Store(tmp_path)
    finish(store, CONFIG)
    assert store.is_done(override(CONFIG, {"runtime.threads": 7, "runtime.log_every": 1}))


def test_a_run_that_was_removed_a_moment_ago_is_none(tmp_path):
    store = Store(tmp_path)
    store.run(CONFIG.run_id).write_config(CONFIG)
    assert store.index.run(CONFIG.key)  # kept for a while
    shutil.rmtree(store.run(CONFIG.run_id).path)
    assert store.as_stored(CONFIG) == CONFIG and store.run_of(CONFIG).path == store.run(CONFIG.run_id).path


def test_status_keeps_what_it_is_not_told(tmp_path):
    run = Store(tmp_path).run("r")
    run.write_status(RUNNING, "train", step=3, steps=9, train_s=1.5)
    run.write_status(FAILED, "sample", reason="because")
    status = run.status()
    assert (status["step"], status["steps"], status["train_s"]) == (3, 9, 1.5)
    assert (status["state"], status["stage"], status["reason"]) == (FAILED, "sample", "because")
    run.write_status(RUNNING, "sample")
    assert run.status()["reason"] is None


@pytest.mark.parametrize("name", ["status.json", "eval.json", "config.json"])
def test_damaged_json_is_named(tmp_path, capsys, name):
    store = Store(tmp_path)
    finish(store, CONFIG)
    path = store.run(CONFIG.run_id).path / name
    path.write_text(path.read_text()[:-20])
    begin_command()
    assert store.is_done(CONFIG) == (name != "eval.json")  # weights and an evaluation: done, whatever the status says
    if name == "config.json":
        with pytest.raises(Damaged, match=rf"{name}.*not valid JSON.*mvar repair --yes"):
            store.run(CONFIG.run_id).config()
    else:
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: not valid JSON" in line


@pytest.mark.parametrize("name", ["status.json", "eval.json", "config.json"])
def test_another_schema_version_is_refused(tmp_path, name):
    store = Store(tmp_path)
    finish(store, CONFIG)
    path = store.run(CONFIG.run_id).path / name
    write_json(path, json.loads(path.read_text()) | {"schema_version": 2})
    with pytest.raises(UserError, match=rf"{name}: schema_version is 2; allowed: 1"):
        store.is_done(CONFIG)
        store.run(CONFIG.run_id).config()


def test_config_survives_and_another_science_is_refused(tmp_path):
    run = Store(tmp_path).run(CONFIG.run_id)
    run.write_config(CONFIG)
    assert run.config() == CONFIG
    run.write_config(override(CONFIG, {"runtime.threads": 3}))  # execution only: allowed
    with pytest.raises(UserError, match="another config"):
        run.write_config(override(CONFIG, {"seed": 1}))


def test_evaluations_add_up(tmp_path):
    run = Store(tmp_path).run("r")
    run.add_evaluation("a", {"metrics": {}})
    run.add_evaluation("b", {"metrics": {"eval/fid": 2.0}})
    assert set(run.evaluations()) == {"a", "b"}


def test_find_run(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(UserError, match="holds no runs yet"):
        store.find_run("x")
    other = override(CONFIG, {"seed": 1})
    finish(store, CONFIG)
    finish(store, other)
    assert store.find_run(CONFIG.run_id).name == CONFIG.run_id
    assert store.find_run(str(store.run(other.run_id).path)).name == other.run_id
    assert store.find_run(other.run_id[:-3]).name == other.run_id
    assert store.find_run("global-s1").name == other.run_id  # as `mvar status` shortens ids
    with pytest.raises(UserError, match="fits 2 runs"):
        store.find_run("global")
    with pytest.raises(UserError, match="fits 2 runs"):
        store.find_run("digits")
    with pytest.raises(UserError, match="unknown; allowed: digits"):
        store.find_run("nope")
    for seed in range(2, 12):
        finish(store, override(CONFIG, {"seed": seed}))
    wrong = f"{CONFIG.run_id[:-3]}xyz"
    with pytest.raises(UserError) as error:  # the nearest few of many
        store.find_run(wrong)
    assert f"(did you mean '{CONFIG.run_id}'?)" in str(error.value) and str(error.value).endswith(" and 6 others")
    assert str(error.value).count("digits-") == 8
    with pytest.raises(UserError, match=r"fits 12 runs; allowed: digits.* and 6 others$"):
        store.find_run("digits")


HOLD = """
import sys, time
from mvar.runs.store import Store
with Store(sys.argv[1]).run("r").lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_excludes_and_dies_with_its_holder(tmp_path):
    run = Store(tmp_path).run("r")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert run.is_locked()
        with pytest.raises(Stopped), run.lock(should_stop=lambda: True):
            pass
    finally:
        holder.kill()  # SIGKILL: nothing is cleaned up
        holder.wait()
    began = time.monotonic()
    with run.lock():
        assert time.monotonic() - began < 2
    assert not run.is_locked()


def test_one_line():
    assert one_line(UserError("a:  b\n c")) == "a: b c"
    assert one_line(ValueError("bad\nvalue")) == "ValueError: bad value"
    assert one_line(MemoryError()) == "MemoryError"


def test_results_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        check_writable(tmp_path / "file" / "results")


def test_documents_that_are_no_objects(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match="schema_version is None"):
        read_document(tmp_path / "x.json")
