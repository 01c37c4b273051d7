"""Real kills and real processes: scripts of this folder in an interpreter of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_driver import generator
from process_driver import CASES, HALF, train
from shards_driver import LEGS, STEPS, weighed, wide
from toy_objective import rows_of, weights_of

from mvar.training.checkpoint import load_latest
from mvar.training.loop import fit

HERE = Path(__file__).parent
KILLED = ["toy", "toy-accumulated-bf16", "generator", "generator-accumulated-bf16", "online", "tokenizer"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="the scripts fork")]


def run_script(name: str, *arguments: object) -> str:
    """Run a script with the repository importable; returns what it prints."""
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_killed_trainings_end_like_uninterrupted_ones():
    assert run_script("kill_driver.py").splitlines() == [f"{case} ok" for case in KILLED]


def test_one_and_two_processes_agree(tmp_path):
    train(tmp_path / "one", rank=0)
    run_script("process_driver.py", tmp_path / "two", 2, free_port())
    for case in (name for name in CASES if not name.endswith(HALF)):  # there a part of a batch rounds by itself
        one, two = tmp_path / "one" / case, tmp_path / "two" / case
        weights = load_latest(one / "checkpoints")[1]["module"]
        for rank in (0, 1):  # every process holds the weights that the first one saved
            reached = torch.load(tmp_path / "two" / f"{case}-{rank}.pt", weights_only=True)
            for name, value in weights.items():
                # A convolution's bias before a norm of single channels has no effect and a gradient of pure rounding,
                # which AdamW blows up to full steps.
                if case != "tokenizer" or not name.endswith("bias"):
                    torch.testing.assert_close(reached[name], value, rtol=0, atol=1e-5)
        assert len(rows_of(one)) >= 5
        assert load_latest(two / "checkpoints")[1]["skips"]["total"] == (2 if "skipping" in case else 0)
        for row, other in zip(rows_of(one), rows_of(two), strict=True):
            assert {k for k, v in row.items() if v is None} == {k for k, v in other.items() if v is None}
            assert finite(row) == pytest.approx(finite(other), rel=1e-5)

    assert_shares_agree(tmp_path / "two")
    assert_one_process_ends_what_two_began(tmp_path / "two", weights_of(tmp_path / "one" / "generator-accumulated"))


def assert_shares_agree(two: Path) -> None:
    """Sharded weights end where whole ones do, in two processes and in one."""
    for name in ("generator", "generator-accumulated"):
        sharded = weights_of(two / name.replace("generator", "generator-sharded"))
        for other in (two, two.with_name("one")):
            np.testing.assert_allclose(sharded, weights_of(other / name), rtol=0, atol=5e-7)
    for half in HALF:
        sharded, whole = weights_of(two / f"generator-sharded-{half}"), weights_of(two / f"generator-{half}")
        np.testing.assert_allclose(sharded, whole, rtol=0, atol=5e-7)
        assert np.abs(whole - weights_of(two / "generator")).max() > 1e-5  # half precision it is


def assert_one_process_ends_what_two_began(two: Path, wanted: np.ndarray) -> None:
    """DDP in two processes, FSDP in two, then one with two micro-batches: as one process from the beginning."""
    objective, optim, runtime = generator(2)
    assert fit(objective, optim, two / "handed-on", runtime, seed=3).finished
    np.testing.assert_allclose(weights_of(two / "handed-on"), wanted, rtol=0, atol=5e-7)


def test_checkpoints_of_one_process_and_of_several_go_on_as_each_other(tmp_path):
    """A file goes on as shards, of whole or sharded weights; in the end one process ends what two have begun.

    The two measure on the way what a restore takes, and what a step keeps.
    """
    asked = iter(range(STEPS + 1))
    objective, optim, runtime = generator(2)
    stop, look = (lambda: next(asked) == STEPS), weighed(objective.module)
    assert not fit(objective, optim, tmp_path / "alone", runtime, seed=3, should_stop=stop, observe=look).finished
    objective, optim, runtime = wide("ddp")
    assert fit(objective, optim, tmp_path / "wide", runtime, seed=3).finished
    run_script("shards_driver.py", tmp_path, free_port())
    objective, optim, runtime = generator(2)
    assert fit(objective, optim, tmp_path / "whole", runtime, seed=3, observe=weighed(objective.module)).finished
    for name in LEGS:
        objective, optim, runtime = generator(2)
        look = weighed(objective.module)
        assert fit(objective, optim, tmp_path / name, runtime, seed=3, observe=look).finished
        np.testing.assert_allclose(weights_of(tmp_path / name), weights_of(tmp_path / "whole"), rtol=0, atol=5e-7)
        for row, other in zip(rows_of(tmp_path / name), rows_of(tmp_path / "whole"), strict=True):
            assert row == pytest.approx(other, rel=1e-5)
        assert sum("train/weights" in row for row in rows_of(tmp_path / name)) > 1
    for path in tmp_path.glob("held-*.json"):  # a restore: at most 1.3 times a process's share
        for told in json.loads(path.read_text()).values():
            assert told["share"] <= told["held"] <= 1.3 * told["share"], path.name
    for path in tmp_path.glob("begun-?.json"):  # a beginning: the first makes the whole, others hold a few tensors more
        told = json.loads(path.read_text())
        made, few = (told["hollow"]["whole"], 2) if path.name == "begun-0.json" else (0, 4)
        assert told["hollow"]["held"] <= made + told["hollow"]["share"] + few * told["hollow"]["largest"], path.name
        assert told["filled"]["held"] <= told["filled"]["whole"] + 1.3 * told["filled"]["share"], path.name
    for path in tmp_path.glob("saved-?.json"):  # what sharding changes of a step's memory: nothing that is saved
        for kept, told in json.loads(path.read_text()).items():
            assert told["shared"] == told["whole"] > 0, kept


def finite(row: dict) -> dict:
    return {name: value for name, value in row.items() if value is not None}
