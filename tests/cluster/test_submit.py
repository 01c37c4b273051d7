"""`mvar submit` and what steers it, from the command line, against a real SLURM: what is asked of it and how often."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_jobs import CONFIG, PROFILE, TINY, ask, until

from mvar.cli import main
from mvar.cluster import scheduler
from mvar.cluster.queue import View
from mvar.cluster.submission import submissions
from mvar.errors import FAILURE, OK, USER_ERROR
from mvar.runs.states import QUEUED
from mvar.runs.store import Store

ROOT = Path(__file__).parents[2]
SETTINGS = [f"{name}={value}" for name, value in TINY.items()]
GRID = ["--seeds", "40", "--set", "model.depth=4"]  # 5 cells
HELD = ["--cluster-set", "cpus_per_task=1", "sbatch.hold=true"]


def submit(store: Store, *more: str, sweep: str = "layers") -> int:
    command = ["submit", sweep, "--preset", "smoke", "--set", *SETTINGS, "--results", str(store.root)]
    return main([*command, "--cluster", "slurm", *HELD, *more])


def queued_ids() -> list[str]:
    return ask("squeue", "-h", "-r", "-o", "%i").split()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Counts SLURM's commands by wrappers in front of them on PATH."""
    folder, log = tmp_path / "wrappers", tmp_path / "calls"
    folder.mkdir()
    log.touch()
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sinfo"):
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\necho {name} >> {log}\nexec {shutil.which(name)} "$@"\n')
        wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda: log.read_text().split()


@pytest.mark.slow
def test_two_hundred_cells_cost_a_constant_number_of_calls(slurm, tmp_path, capsys, calls):
    """200 runs and their stages are submitted, held, so that none begins: what is counted is the scheduler's work.

    Then they are asked for again, looked at and cancelled, each with one squeue.
    """
    store = Store(tmp_path / "results")
    assert submit(store, *GRID) == OK
    assert sorted(calls()) == ["sbatch"] * 4 + ["scontrol"]  # two tests, two submissions; nothing to ask squeue for
    said = capsys.readouterr().out
    assert "200 runs: 0 done, 0 queued or running, 200 to submit" in said
    stages, runs = submissions(store)[0].jobs
    assert f"stages: job {stages.job_id}\n" in said and f"runs: job {runs.job_id} (200 elements)" in said
    assert "next: mvar status" in said
    assert len(queued_ids()) == 201
    before = len(calls())
    assert submit(store, *GRID) == OK
    assert "200 queued or running, 0 to submit" in capsys.readouterr().out
    assert sorted(calls()[before:]) == ["scontrol", "squeue"]
    before = len(calls())
    assert main(["status", "--results", str(store.root)]) == OK
    assert "200 queued" in capsys.readouterr().out
    assert calls()[before:] == ["squeue"]
    before = len(calls())
    assert main(["cancel", "--all", "--results", str(store.root)]) == OK
    assert calls()[before:] == ["squeue", "scancel"]
    until("empty queue", lambda: not queued_ids())
    capsys.readouterr()
    assert main(["status", "--results", str(store.root)]) == OK
    assert "200 stopped" in capsys.readouterr().out


def test_only_what_is_missing_is_submitted_and_waits_for_its_stages(slurm, reference, tmp_path, capsys):
    """Stages that are done are no dependency; those that another submission makes are waited for, not made twice."""
    store = Store(tmp_path / "results")
    assert submit(store) == OK
    first = submissions(store)[0]
    stages, runs = first.jobs
    assert f"afterok:{stages.job_id}" in ask("scontrol", "show", "job", runs.job_id)
    assert submit(store, "--seeds", "0,1") == OK
    assert "3 queued or running, 3 to submit" in capsys.readouterr().out
    second = submissions(store)[1]
    assert len(second.jobs) == 1
    assert f"afterok:{stages.job_id}" in ask("scontrol", "show", "job", second.jobs[0].job_id)
    shown = ask("scontrol", "show", "job", f"{second.jobs[0].job_id}")
    assert "Requeue=1" in shown
    assert main(["cancel", "--all", "--results", str(store.root)]) == OK

    done = Store(tmp_path / "done")
    shutil.copytree(reference, done.root)
    capsys.readouterr()
    assert submit(done) == OK
    assert "3 runs: 1 done, 0 queued or running, 2 to submit" in capsys.readouterr().out
    (job,) = submissions(done)[0].jobs
    assert "Dependency=(null)" in ask("scontrol", "show", "job", job.job_id)
    assert View(done)(done.run(CONFIG.run_id)).state == "done"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("partition=nowhere", "nvalid partition"),
        ("gpus_per_node=9", "not available"),
        ("mem_gb=9000", "not available"),
        ("constraint=moon", "nvalid feature"),
        ("sbatch.no-such-option=1", "unrecognized option"),
    ],
)
def test_a_request_that_slurm_refuses_is_not_submitted(slurm, tmp_path, capsys, wrong, said):
    store = Store(tmp_path / "results")
    assert submit(store, "--cluster-set", wrong) == USER_ERROR
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1 and wrong.split("=")[0].removeprefix("sbatch.") in line
    assert queued_ids() == [] and submissions(store) == []


def test_evaluations_of_one_run_share_its_job(slurm, tmp_path, capsys):
    """Two sets of images of each run: two jobs in one directory would wait for each other."""
    store = Store(tmp_path / "results")
    assert submit(store, "--sample-seeds", "2") == OK
    assert "6 to submit" in capsys.readouterr().out
    assert [len(keys) for keys in submissions(store)[0].jobs[-1].elements] == [2, 2, 2]
    assert submit(store, "--sample-seeds", "3") == OK
    assert "9 queued or running, 0 to submit" in capsys.readouterr().out
    assert main(["cancel", "--all", "--results", str(store.root)]) == OK
    until("empty queue", lambda: not queued_ids())


def test_dry_run_submits_nothing(slurm, tmp_path, capsys):
    store = Store(tmp_path / "results")
    assert submit(store, "--dry-run") == OK
    said = capsys.readouterr().out
    assert "would call sbatch 2 times" in said and said.count("run: digits") == 3
    assert not store.root.exists() and queued_ids() == []


def test_a_killed_submission_is_found_again_by_name(slurm, tmp_path):
    """As if `mvar submit` had died between sbatch and noting the job's id."""
    store = Store(tmp_path / "results")
    assert submit(store) == OK
    path = submissions(store)[0].folder / "submission.json"
    text = json.loads(path.read_text())
    for job in text["jobs"]:
        job["job_id"] = None
    path.write_text(json.dumps(text))
    assert View(store)(store.run(next(iter(View(store).names())))).state == QUEUED
    assert submit(store) == OK
    assert len(submissions(store)) == 1
    assert main(["cancel", "--all", "--results", str(store.root)]) == OK
    until("empty queue", lambda: not queued_ids())


def test_doctor_checks_the_cluster(slurm, tmp_path, capsys):
    results = ["--results", str(tmp_path)]
    assert (
        main(["doctor", "--cluster", "slurm-gpu", "--cluster-set", "gpus_per_node=4", "cpus_per_task=2", *results])
        == OK
    )
    said = capsys.readouterr().out
    assert "partition main" in said and "gpu:4" in said and "SLURM accepts its requests" in said
    assert main(["doctor", "--cluster", "slurm-node", *results]) == FAILURE  # 8 GPUs
    assert "broken  profile" in capsys.readouterr().out


def test_logs_and_names(slurm, tmp_path, capsys):
    store = Store(tmp_path / "results")
    assert submit(store) == OK
    results = ["--results", str(store.root)]
    name = View(store).names()[0]
    assert main(["logs", name, *results]) == USER_ERROR
    assert "printed nothing yet" in capsys.readouterr().err
    assert main(["cancel", "unknown", *results]) == USER_ERROR
    assert main(["cancel", name, *results]) == OK
    until("two runs and the stages", lambda: len(queued_ids()) == 3)
    submission = submissions(store)[0]
    (submission.logs / f"{submission.jobs[1].element_id(0)}_0_log.err").write_text("first\nlast\n")
    capsys.readouterr()
    key = submission.jobs[1].elements[0][0].partition("/")[0]
    assert main(["logs", key, "--lines", "1", *results]) == OK
    said = capsys.readouterr().out
    assert "last" in said and "first" not in said


def test_the_job_runs_the_code_that_was_submitted(slurm, tmp_path):
    """The script names the snapshot before everything else, and Python in it finds the packages there."""
    store = Store(tmp_path / "results")
    assert submit(store) == OK
    submission = submissions(store)[0]
    script = next(submission.logs.glob("*_submission.sh")).read_text()
    exports = [line for line in script.splitlines() if line.startswith("export")]
    code = (
        "import mvar, mvar.cluster.job as job, mvar.runs.environment as e; "
        "print(mvar.__file__, job.__file__, e.git_state())"
    )
    shell = "; ".join([*exports, f"cd {Path(__file__).parents[2]}", f"{sys.executable} -c '{code}'"])
    said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert said.count(str(submission.code)) == 2
    commit = json.loads((submission.code / "snapshot.json").read_text())["commit"]
    assert commit is None or commit in said
    assert PROFILE.executor == "slurm"


def test_a_submission_that_fails_midway_leaves_nothing_behind(slurm, tmp_path, monkeypatch, capsys):
    """The second sbatch is refused: the stages' job is cancelled, the reason is the first one's."""
    wrapper, count = tmp_path / "bin" / "sbatch", tmp_path / "count"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *--test-only*) ;; *) echo x >> {count};\n'
        f'[ $(wc -l < {count}) = 2 ] && echo "Socket timed out on send/recv operation" >&2 && exit 1;; esac\n'
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    store = Store(tmp_path / "results")
    assert submit(store) == USER_ERROR
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("mvar: error"))  # ours
    assert "timed out" in line
    until("empty queue", lambda: not queued_ids())
    assert submit(store) == OK  # and what was not submitted is not taken for submitted
    assert "3 to submit" in capsys.readouterr().out
    assert len(queued_ids()) == 4


@pytest.mark.slow
def test_two_submissions_at_once_submit_once(slurm, tmp_path):
    store = Store(tmp_path / "results")
    command = [sys.executable, "-m", "mvar.cli", "submit", "layers", "--preset", "smoke", "--results", str(store.root)]
    command += ["--set", *SETTINGS, "--cluster", "slurm", *HELD]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = "".join(each.communicate(timeout=120)[0] for each in both)
    assert [each.returncode for each in both] == [OK, OK]
    assert said.count("3 to submit") == said.count("3 queued or running, 0 to submit") == 1
    assert len(queued_ids()) == 4 and len(submissions(store)) == 1


def test_more_runs_than_an_array_may_have(slurm, tmp_path, monkeypatch):
    """Several arrays, which share the number of jobs at a time."""
    monkeypatch.setattr(scheduler, "settings", lambda: {"MaxArraySize": "2"})
    store = Store(tmp_path / "results")
    assert submit(store, "--seeds", "2", "--cluster-set", "array_parallelism=7") == OK
    stages, *arrays = submissions(store)[0].jobs
    assert [len(job.elements) for job in arrays] == [2, 2, 2]
    throttles = [ask("scontrol", "show", "job", job.job_id) for job in arrays]
    assert all("ArrayTaskThrottle=2" in shown and f"afterok:{stages.job_id}" in shown for shown in throttles)
    assert len(queued_ids()) == 7


def test_the_warning_signal_is_the_one_that_is_heeded(slurm, tmp_path, monkeypatch):
    """submitit takes it from a variable of the user's shell; the job would die of any other."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    monkeypatch.setattr(SlurmJobEnvironment, "USR_SIG", "USR1")
    store = Store(tmp_path / "results")
    assert submit(store) == OK
    scripts = [path.read_text() for path in submissions(store)[0].logs.glob("*_submission.sh")]
    assert len(scripts) == 2 and all("--signal=USR2@" in text and "USR1" not in text for text in scripts)
