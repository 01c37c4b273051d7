"""One run on several processes: in a job of SLURM over two nodes, under torchrun, and one of them killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from slurm_jobs import CONFIG, PROFILE, TINY, Sent, ask, rows, send, until
from torch.testing import assert_close

from mvar.cluster.queue import View
from mvar.cluster.submit import plan, submit
from mvar.config import override
from mvar.runs.states import DONE, FAILED, RUNNING, STOPPED
from mvar.runs.store import Store

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


def variables(process: int) -> dict[str, str]:
    """The environment that a process was started with."""
    words = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.mark.faults
def test_processes_on_two_nodes_agree_where_to_stop(slurm, store, reference):
    """Signalled in the middle, all save at one step and go on; the end is that of one process, up to rounding.

    One process a GPU, on the node that SLURM gave it, with the CPUs that the profile asks for.
    """
    sent = send(store, nodes=2, gpus_per_node=1, cpus_per_task=2)
    sent.until_training(checkpoints=1)
    given = [variables(process) for process in slurm.processes(sent.job_id)]
    assert [v["SLURM_PROCID"] for v in given] == ["0", "1"]
    assert len({v["SLURMD_NODENAME"] for v in given}) == 2
    assert [v["CUDA_VISIBLE_DEVICES"] for v in given] == ["0", "0"]
    step = ask("scontrol", "show", "step", f"{sent.job_id}.0")
    assert "Tasks=2" in step and "CPUs=4" in step
    # one process only: the others must follow it
    os.kill(slurm.processes(sent.job_id)[1], signal.SIGUSR2)
    sent.until_restarted()
    sent.until_gone()
    assert_same_up_to_rounding(sent.run, reference)


@pytest.mark.faults
@pytest.mark.parametrize(("victim", "nodes"), [(0, 1), (1, 2)])
def test_one_killed_process_ends_the_job(slurm, store, reference, victim, nodes):
    """Also where the other one would never notice: it is frozen, so that only `--kill-on-bad-exit` can end it."""
    sent = send(store, nodes=nodes, tasks_per_node=2 // nodes)
    sent.until_training(checkpoints=1)
    processes = slurm.processes(sent.job_id)
    os.kill(processes[1 - victim], signal.SIGSTOP)
    os.kill(processes[victim], signal.SIGKILL)
    sent.until_gone(60)
    found = View(store)(sent.run)
    assert found.state == FAILED and "killed" in found.reason
    again = send(store)  # one process goes on where two were
    again.until_gone()
    assert_same_up_to_rounding(again.run, reference)


@pytest.mark.faults
def test_two_jobs_of_two_processes_on_one_node(slurm, store, reference):
    """Each finds a port of its own and its own partner."""
    other = override(CONFIG, {"seed": 1})
    profile = PROFILE.model_copy(update={"tasks_per_node": 2, "sbatch": {"nodelist": "127.0.1.1"}})
    submission = submit(plan([CONFIG, other], store), store, profile)
    both = [Sent(store, config, submission) for config in (CONFIG, other)]
    for sent in both:
        sent.until_training()
    assert [sent.run.status()["state"] for sent in both] == [RUNNING, RUNNING]
    both[0].until_gone()
    assert both[1].run.state() == DONE
    assert_same_up_to_rounding(both[0].run, reference)


@pytest.mark.faults
@pytest.mark.parametrize("then", [2, 1])
def test_torchrun(store, reference, then):
    """Two processes train each run together; asked to stop they save, and as many, or one, go on from there.

    How many there are is no part of what the run is: it is recorded.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mvar.cli"]
    settings = [f"{name}={value}" for name, value in TINY.items()]
    command += ["submit", "layers", "--preset", "smoke", "--results", str(store.root), "--cluster", "inprocess"]
    command += ["--set", *settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = store.run(CONFIG.run_id)
    launched = subprocess.Popen(command, env=environment, **pipes)
    until("checkpoint", lambda: list(run.path.glob("checkpoints/step*")))
    launched.send_signal(signal.SIGTERM)  # torchrun hands it on to both
    said, _ = launched.communicate(timeout=60)
    assert run.state() == STOPPED and launched.returncode, said[-3000:]
    alone = [sys.executable, *command[command.index("-m", 2) :]]
    result = subprocess.run(command if then == 2 else alone, env=environment, timeout=300, **pipes)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "3 of 3 runs done" in result.stdout
    assert_same_up_to_rounding(run, reference)
    assert [way["processes"] for way in run.execution()] == ([2] if then == 2 else [2, 1])
    (record,) = run.evaluations().values()
    assert record["execution"]["train"] == run.execution() and record["execution"]["sample"]["processes"] == then
