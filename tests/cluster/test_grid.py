"""A grid of 200 real trainings on a real SLURM, 25 of them a job; and what packing several runs into a job changes."""

import os
import signal

import pytest
from slurm_jobs import CONFIG, PROFILE, TINY, Sent, ask, assert_same_end, until

from mvar.cli import main
from mvar.cluster.queue import View
from mvar.cluster.submission import submissions
from mvar.cluster.submit import plan, submit
from mvar.config import override
from mvar.errors import OK
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE, FAILED, QUEUED, STOPPED
from mvar.runs.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
CELLS, PER_JOB, STEPS = 200, 25, 5
LIMIT_S = 400.0
SETTINGS = [f"{name}={value}" for name, value in (TINY | {"train.steps": STEPS}).items()]
GRID = ["layers", "--preset", "smoke", "--seeds", str(CELLS // 5), "--set", *SETTINGS, "model.depth=4"]
JOBS = [f"runs_per_job={PER_JOB}", "array_parallelism=2", "cpus_per_task=1", "mem_gb=4", "timeout_min=60"]


def send_packed(configs, store) -> list[Sent]:
    """All in one job, in this order."""
    submission = submit(plan(configs, store, len(configs)), store, PROFILE)
    return [Sent(store, config, submission) for config in configs]


@pytest.mark.slow
def test_two_hundred_cells_train(slurm, tmp_path, capsys):
    """Stages, then 8 jobs of 25 runs, two at a time; one is warned midway. Every cell ends, as without a cluster."""
    store = Store(tmp_path / "results")
    results = ["--results", str(store.root)]
    assert main(["submit", *GRID, "--cluster", "slurm", "--cluster-set", *JOBS, *results]) == OK
    assert f"{CELLS} to submit" in capsys.readouterr().out
    submission = submissions(store)[0]
    _, runs = submission.jobs
    assert len(runs.elements) == CELLS // PER_JOB
    works = submission.works(runs.name, 0)
    first = Sent(store, works[0].config, submission)
    until("a run is done", lambda: store.run(works[0].config.run_id).state() == DONE)
    # not by scancel: while others of the array are pending it delivers the signal, but reports an error and tries again
    (process,) = slurm.processes(ask("squeue", "-h", "-j", runs.element_id(0), "-o", "%A").strip())
    os.kill(process, signal.SIGUSR2)
    first.until_gone(LIMIT_S)
    capsys.readouterr()
    assert main(["status", *results]) == OK
    assert f"{CELLS} done" in capsys.readouterr().out
    last = works[-1].config
    alone = Store(tmp_path / "alone")
    assert execute(last, alone) == DONE
    assert_same_end(Sent(store, last, submission), alone.root)
    assert "queued again" in first.log()


def test_runs_of_one_job(slurm, store, reference):
    """A run that fails does not take the others along; while one is made the next is queued; one cancel ends all."""
    broken = override(CONFIG, {"train.init_from": "/nowhere.pth", "train.steps": 301})  # the longest goes first
    later = override(CONFIG, {"train.steps": 299})
    failed, sent, waiting = send_packed([broken, CONFIG, later], store)
    sent.until_training()
    view = View(store)
    assert view(failed.run).state == FAILED and "nowhere.pth" in view(failed.run).reason
    assert view(waiting.run).state == QUEUED and "go first" in view(waiting.run).reason
    until("end of the second run", lambda: sent.run.state() == DONE)
    waiting.until_training()
    assert main(["cancel", later.run_id, "--results", str(store.root)]) == OK
    sent.until_gone()
    assert list(waiting.run.path.glob("checkpoints/step*"))
    assert_same_end(sent, reference)
    view = View(store)
    assert [view(each.run).state for each in (failed, sent, waiting)] == [FAILED, DONE, STOPPED]
