"""One run on several processes: in a job of SLURM over two nodes, under torchrun, and one of them killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from slurm_jobs import CONFIG, rows, send
from torch.testing import assert_close

from experiments.store import DONE, FAILED, Store
from slurm.queue import View

ROOT = Path(__file__).parents[2]


def assert_same_up_to_rounding(run, reference: Path) -> None:
    theirs = Store(reference).run(run.name)
    assert run.state() == DONE
    ours, other = load_file(run.weights), load_file(theirs.weights)
    assert ours.keys() == other.keys()
    for name, value in ours.items():
        assert_close(value, other[name], rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    for row, expected in zip(rows(run), rows(theirs), strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.faults
def test_processes_on_two_nodes_agree_where_to_stop(slurm, store, reference):
    """Signalled in the middle, all save at one step and go on; the end is that of one process, up to rounding."""
    sent = send(store, nodes=2)
    sent.until_training(checkpoints=1)
    # one process only: the others must follow it
    os.kill(slurm.processes(sent.job_id)[1], signal.SIGUSR2)
    sent.until_restarted()
    sent.until_gone()
    assert_same_up_to_rounding(sent.run, reference)


@pytest.mark.faults
def test_one_killed_process_ends_the_job(slurm, store, reference):
    sent = send(store, tasks_per_node=2)
    sent.until_training(checkpoints=1)
    os.kill(slurm.processes(sent.job_id)[1], signal.SIGKILL)
    sent.until_gone(30)
    found = View(store)(sent.run)
    assert found.state == FAILED and "killed" in found.reason
    again = send(store)  # one process goes on where two were
    again.until_gone()
    assert_same_up_to_rounding(again.run, reference)


@pytest.mark.faults
def test_torchrun(store, reference):
    """What `torchrun -m mvar.cli submit ... --cluster inprocess` does, for one run: two processes train it together."""
    code = (
        "import sys; from experiments.store import Store; from slurm.inprocess import run_all;"
        "from mvar.config import RunConfig, from_dict; import json;"
        "summary = run_all([from_dict(RunConfig, json.loads(sys.argv[1]))], Store(sys.argv[2]));"
        "sys.exit(summary.num_done != 1)"
    )
    script = store.root / "train.py"
    script.write_text(code)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*launcher, str(script), CONFIG.model_dump_json(), str(store.root)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert_same_up_to_rounding(store.run(CONFIG.run_id), reference)
