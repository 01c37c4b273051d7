"""Damaged and unwritable files of runs, through the command line: one true line, and the same end in the end."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import CONFIG, arguments, files_of, interrupt

from mvar.cli import main
from mvar.config import override
from mvar.errors import FAILURE, OK, USER_ERROR
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE
from mvar.runs.store import Store

ROOT = Path(__file__).parents[2]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.slow
def test_damaged_checkpoints(store, made, tmp_path, capfd):
    """One whose predecessor can be read, and a run that has none left: each says what is done; both end alike."""
    older, newest = interrupt(one := override(CONFIG, {"model.pattern": "mamba"}), store, step=6)
    cut(newest)
    lost = interrupt(other := override(CONFIG, {"model.pattern": "intra"}), store, step=6)
    for path in lost:
        cut(path)
    before = files_of(store, CONFIG)
    assert main(arguments(store.root)) == OK
    out, err = capfd.readouterr()
    assert "4 of 4 runs done" in out and before == files_of(store, CONFIG)
    said = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(said) == 3 and all(line.startswith("mvar: warning: ") for line in said)
    (fell_back,) = [line for line in said if str(newest) in line]
    assert fell_back.endswith(f"allowed: a complete one; training goes on from the one before it, {older.name}")
    for path in lost:
        (anew,) = [line for line in said if str(path) in line]
        assert anew.endswith("no other can be read, training starts anew")
    shutil.copytree(made, tmp_path / "once")
    for config in (one, other):
        assert execute(config, once := Store(tmp_path / "once")) == DONE
        assert once.run(config.run_id).weights.read_bytes() == store.run(config.run_id).weights.read_bytes()


@pytest.mark.slow
def test_a_full_disk(store, made, tmp_path, capfd):
    """No file may grow to a checkpoint's size: each run that needs one fails, and goes on once there is room."""
    resource = pytest.importorskip("resource")
    (whole,) = (store.run(CONFIG.run_id).path / "checkpoints").glob("step_*")
    limit = whole.stat().st_size // 2
    before = files_of(store, CONFIG)
    full = subprocess.run(
        [sys.executable, "-m", "mvar.cli", *arguments(store.root)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert full.returncode == FAILURE and "1 of 4 runs done" in full.stdout and "Traceback" not in full.stderr
    lines = [line for line in full.stderr.splitlines() if line.startswith("mvar: error: ")]
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(r"mvar: error: .*: OSError: .*File too large: '.*/step_00000004\.pt'", line), line
    assert files_of(store, CONFIG) == before

    assert main(arguments(store.root)) == OK
    assert "4 of 4 runs done" in capfd.readouterr().out and files_of(store, CONFIG) == before
    shutil.copytree(made, tmp_path / "once")
    config, once = override(CONFIG, {"model.pattern": "intra+mamba"}), Store(tmp_path / "once")
    assert execute(config, once) == DONE
    assert once.run(config.run_id).weights.read_bytes() == store.run(config.run_id).weights.read_bytes()


@pytest.mark.slow
def test_damaged_weights(store, capfd):
    """Who needs them says what to do, and doing it brings them back to the bit."""
    run = store.run(CONFIG.run_id)
    weights, place = run.weights.read_bytes(), ["--results", str(store.root)]
    run.weights.write_bytes(weights[:-10])
    evaluations = run.evaluations()
    for command in (["sample", run.name], ["evaluate", run.name, "--set", "sample.cfg_scale=3"]):
        assert main([*command, *place]) == USER_ERROR
        (line,) = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[")]
        assert line.startswith("mvar: error: ") and str(run.weights) in line and "delete that file" in line
    assert run.evaluations() == evaluations
    run.weights.unlink()
    assert main(arguments(store.root)) == OK
    assert run.weights.read_bytes() == weights and run.state() == DONE and run.evaluations() == evaluations
