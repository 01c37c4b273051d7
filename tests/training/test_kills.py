"""Real kills and real processes: scripts of this folder in an interpreter of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_driver import CASES, train
from toy_objective import rows_of

from mvar.training.checkpoint import load_latest

HERE = Path(__file__).parent
KILLED = ["toy", "toy-accumulated-bf16", "generator", "generator-accumulated-bf16", "tokenizer"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="the scripts fork")]


def run_script(name: str, *arguments: object) -> str:
    """Run a script with the repository importable; returns what it prints."""
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_killed_trainings_end_like_uninterrupted_ones():
    assert run_script("kill_driver.py").splitlines() == [f"{case} ok" for case in KILLED]


def test_one_and_two_processes_agree(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    train(tmp_path / "one", rank=0)
    run_script("process_driver.py", tmp_path / "two", 2, port)
    for case in CASES:
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


def finite(row: dict) -> dict:
    return {name: value for name, value in row.items() if value is not None}
