"""What clusters do to jobs, done to real training runs in a real SLURM: each ends with the very bytes of a run that
nothing happened to, or is marked failed with the reason and can be submitted again.

The cluster has no accounting: nothing here may need sacct.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from killing import end_at, in_child
from slurm_cluster import start_time
from slurm_jobs import CONFIG, PATIENCE_S, PROFILE, Sent, ask, assert_same_end, kill_node, send, until

from mvar.cli import main
from mvar.cluster.queue import View
from mvar.cluster.submission import submissions
from mvar.cluster.submit import plan, submit
from mvar.config import override
from mvar.errors import OK, USER_ERROR
from mvar.runs.states import DONE, FAILED, QUEUED, RUNNING, STOPPED
from mvar.runs.store import Store
from mvar.runs.wiring import Stages

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def seen(sent):
    """What `mvar status` shows of a run."""
    return View(sent.store)(sent.run)


def retry(sent, *arguments: str) -> None:
    """`mvar retry` it, and wait for its end."""
    results = ["--results", str(sent.store.root)]
    before = len(submissions(sent.store))
    assert main(["retry", *(arguments or ["--failed"]), *results]) == OK
    again = submissions(sent.store)
    assert len(again) == before + 1
    sent.submission = again[-1]
    sent.until_gone()


def test_undisturbed_without_sacct_and_beside_stale_results(slurm, store, reference, tmp_path, monkeypatch):
    """A result file of an older cluster's job with the same id, and one cut off while it was written, are there."""
    (tmp_path / "bin").mkdir()
    sacct = tmp_path / "bin" / "sacct"
    sacct.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nexit 1\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    sent = send(store, sbatch={"hold": True})
    for name in ("result.pkl", "result.pkl.save_tmp"):
        (sent.submission.logs / f"{sent.job_id}_0_{name}").write_bytes(b"stale")
    assert seen(sent).state == QUEUED
    ask("scontrol", "release", sent.job_id)
    sent.until_gone()
    assert_same_end(sent, reference)
    assert seen(sent).state == DONE
    assert not (tmp_path / "asked").exists()
    made_with = json.loads((sent.run.path / "env.json").read_text())
    assert made_with["git"]["snapshot"] == sent.submission.code.name  # and not the checkout that the job began in


def test_time_limit_signal(slurm, store, reference):
    sent = send(store)
    sent.until_training()
    ask("scancel", "--signal=USR2", sent.job_id)
    sent.until_restarted()
    assert sent.run.state() == STOPPED
    until("queued", lambda: seen(sent).state == QUEUED)
    sent.until_gone()
    assert "stopped at train" in sent.log()
    assert_same_end(sent, reference)


@pytest.mark.slow
def test_time_limit_itself(slurm, store, reference):
    """SLURM looks at limits every 30 s, so that of one minute warns within 30 s. The process is frozen until then, so
    that the test does not need long training."""
    sent = send(store, timeout_min=1)
    sent.until_training()
    (process,) = slurm.processes(sent.job_id)
    os.kill(process, signal.SIGSTOP)

    def warned() -> bool:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        pending = (int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))
        return any(mask >> (signal.SIGUSR2 - 1) & 1 for mask in pending) or "stopped at" in sent.log()

    until("warning", warned)
    os.kill(process, signal.SIGCONT)
    sent.until_restarted()
    sent.until_gone(2 * PATIENCE_S)
    assert "queued again" in sent.log()
    assert_same_end(sent, reference)


@pytest.mark.slow
def test_time_limit_unheeded(slurm, store, reference, tmp_path):
    """A step or save that outlasts the warning: SLURM kills, the run is marked so, and `mvar retry` goes on."""
    stuck = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: time.sleep(1000))"
    (tmp_path / "sitecustomize.py").write_text(stuck)
    sent = send(store, timeout_min=1, env={"PYTHONPATH": str(tmp_path)})
    sent.until_training(checkpoints=1)
    (process,) = slurm.processes(sent.job_id)
    os.kill(process, signal.SIGUSR1)
    sent.until_gone()
    assert seen(sent).state == FAILED and "time limit" in seen(sent).reason
    retry(sent, "--failed", "--cluster-set", "timeout_min=60")
    assert_same_end(sent, reference)


def test_a_refused_requeue_is_a_failure(slurm, store, reference, tmp_path, monkeypatch):
    """A site that does not let its users requeue: the checkpoint is there, and the reason."""
    scontrol, path = tmp_path / "bin" / "scontrol", os.environ["PATH"]
    scontrol.parent.mkdir()
    refusal = "Requested operation is presently disabled"
    scontrol.write_text(
        f'#!/bin/sh\n[ "$1" = requeue ] && echo {refusal} >&2 && exit 1\nexec {shutil.which("scontrol")} "$@"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{path}")
    sent = send(store)
    monkeypatch.setenv("PATH", path)
    sent.until_training()
    ask("scancel", "--signal=USR2", sent.job_id)
    sent.until_gone()
    assert seen(sent).state == FAILED and refusal in seen(sent).reason
    retry(sent)
    assert_same_end(sent, reference)


def test_signal_before_python_is_ready(slurm, store, reference):
    """A warning in the first moments neither kills the job nor is lost."""
    sent = send(store)
    until("process", lambda: slurm.processes(sent.job_id))
    (process,) = slurm.processes(sent.job_id)
    os.kill(process, signal.SIGUSR2)
    sent.until_restarted()
    assert not sent.run.metrics.exists() or sent.run.state() == STOPPED
    sent.until_gone()
    assert_same_end(sent, reference)


@pytest.mark.parametrize("partition", ["scavenge", "grace"])
@pytest.mark.parametrize("signals", [True, False], ids=["signal", "silent"])
def test_preemption(slurm, store, reference, partition, signals):
    """Without grace SLURM ends and requeues the job itself; with grace it warns, and the job leaves early. Where it
    sends no signal of the user's choice (`preempt_send_user_signal` off, SLURM's default) SIGTERM is the warning."""
    if not signals:
        slurm.configure("SlurmctldParameters=preempt_send_user_signal\n", "")
    sent = send(store, partition=partition)
    sent.until_training()
    ask("sbatch", "--partition=main", "--nodes=2", "--exclusive", "--mem=0", "--output=/dev/null", "--wrap=sleep 1")
    shown = set()

    def told() -> bool:
        now = seen(sent)
        shown.add(now.state)
        return now.state == QUEUED and now.reason.startswith("preempted, queued again")

    until("word of the preemption", told)
    assert FAILED not in shown
    sent.until_restarted()
    sent.until_gone()
    assert "stopped at train" in sent.log()
    assert_same_end(sent, reference)


@pytest.mark.parametrize("pickles", [0, 1])
def test_submit_killed_between_sbatch_and_its_files(slurm, store, reference, pickles):
    """The array is queued, its elements' pickles are not all there: what lacks one is sent again, nothing waits."""
    other = override(CONFIG, {"seed": 1, "train.steps": 20})
    configs, held = [CONFIG, other], PROFILE.model_copy(update={"sbatch": {"hold": True}})

    def killed() -> int:
        end_at(("submitit.core.utils:JobPaths.move_temporary_file", "after", 1 + pickles), signal.SIGKILL)
        submit(plan(configs, store), store, held)
        return 0

    assert in_child(killed) == -signal.SIGKILL
    found = plan(configs, store)
    assert len(found.runs) == 2 - pickles and found.num_active == pickles
    first = submissions(store)[0].jobs[-1]
    queued = ask("squeue", "-h", "-r", "--name", first.name, "-o", "%i").split()
    assert queued == [first.element_id(i) for i in range(2) if i not in first.undone]
    if queued:
        ask("scontrol", "release", first.job_id)
    submit(found, store, PROFILE)
    until("both runs", lambda: store.is_done(CONFIG) and store.is_done(other))
    sent = Sent(store, CONFIG, submissions(store)[-1])
    assert_same_end(sent, reference)


def test_one_element_of_an_array(slurm, store, reference):
    """Only the element that was warned is queued again."""
    other = override(CONFIG, {"seed": 1, "train.steps": 20})
    submission = submit(plan([CONFIG, other], store), store, PROFILE)
    (job,) = submission.jobs
    index = next(i for i, keys in enumerate(job.elements) if keys[0].startswith(CONFIG.run_id))
    sent = Sent(store, CONFIG, submission, index)
    sent.until_training()
    ask("scancel", "--signal=USR2", job.element_id(index))
    sent.until_gone()
    assert "queued again" in sent.log()
    assert_same_end(sent, reference)
    assert store.is_done(other)
    assert "queued again" not in Sent(store, other, submission, 1 - index).log()


def test_all_elements_are_warned_and_the_last_is_cancelled(slurm, store, reference):
    """SLURM knows the last element by the array's own number: what becomes of the others is not taken for its fate."""
    others = [override(CONFIG, {"seed": seed}) for seed in (1, 2)]
    submission = submit(plan([CONFIG, *others], store), store, PROFILE)
    (job,) = submission.jobs
    names = [keys[0].partition("/")[0] for keys in job.elements]
    sent = [Sent(store, c, submission, names.index(c.run_id)) for c in (CONFIG, *others)]
    for each in sent:
        each.until_training()
    own = dict(line.split() for line in ask("squeue", "-h", "-r", "-o", "%i %A").splitlines())
    (last,) = (each for each in sent if own[job.element_id(each.index)] == job.job_id)
    for number in own.values():
        (process,) = slurm.processes(number)
        os.kill(process, signal.SIGUSR2)
    for each in sent:
        until("all queued again", lambda each=each: "queued again" in each.log())
        until("all begun again", lambda each=each: each.log().count("mvar: start") >= 3)
    element = job.element_id(last.index)
    until("training again", lambda: last.run.status()["state"] == RUNNING)
    ask("scancel", element)
    last.until_gone()
    assert seen(last).state == STOPPED and "cancelled" in seen(last).reason
    assert last.log().count("queued again") == 1
    for each in sent:
        assert each is last or each.run.state() == DONE
    if last.config != CONFIG:
        assert_same_end(sent[0], reference)


def test_requeue_by_hand(slurm, store, reference):
    sent = send(store)
    sent.until_training()
    ask("scontrol", "requeue", sent.job_id)
    sent.until_restarted()
    sent.until_gone()
    assert "stopped at train" in sent.log() and "queued again" not in sent.log()
    assert_same_end(sent, reference)


def test_scancel_is_no_failure_and_retry_goes_on(slurm, store, reference):
    sent = send(store)
    sent.until_training()
    ask("scancel", sent.job_id)
    sent.until_gone()
    assert seen(sent).state == STOPPED and "cancelled" in seen(sent).reason.lower()
    assert list(sent.run.path.glob("checkpoints/step*"))
    retry(sent, sent.run.name)
    assert_same_end(sent, reference)


def test_out_of_memory(slurm, store, reference):
    """SLURM kills what takes more than it asked for; the reason is in `mvar status`, more memory mends it."""
    sent = send(store, mem_gb=0.2)
    sent.until_gone()
    assert seen(sent).state == FAILED and "out of memory" in seen(sent).reason
    retry(sent, "--failed", "--cluster-set", "mem_gb=4")
    assert_same_end(sent, reference)


def test_kill_9(slurm, store, reference):
    sent = send(store)
    sent.until_training(checkpoints=1)
    (process,) = slurm.processes(sent.job_id)
    os.kill(process, signal.SIGKILL)
    sent.until_gone()
    assert seen(sent).state == FAILED and "killed" in seen(sent).reason
    retry(sent)
    assert_same_end(sent, reference)


def test_suspended_is_not_ended(slurm, store, reference):
    sent = send(store)
    sent.until_training()
    ask("scontrol", "suspend", sent.job_id)
    assert seen(sent).state == QUEUED and seen(sent).reason == "SUSPENDED"
    ask("scontrol", "resume", sent.job_id)
    sent.until_gone()
    assert_same_end(sent, reference)


def test_controller_dies_and_comes_back(slurm, store, reference, capsys):
    """Meanwhile: the job is warned and goes on asking to be requeued; status says what it can; submit says why not."""
    sent = send(store)
    sent.until_training()
    process = slurm.processes(sent.job_id)[0]
    os.kill(process, signal.SIGSTOP)  # training must not end before the controller has written its state
    slurm.until_saved(sent.job_id)
    slurm.kill("slurmctld")
    os.kill(process, signal.SIGUSR2)
    os.kill(process, signal.SIGCONT)
    results = ["--results", str(store.root)]
    assert main(["status", *results]) == OK
    assert "squeue" in capsys.readouterr().err
    assert main(["retry", "--failed", *results]) == USER_ERROR
    until("attempt to requeue", lambda: "requeue, attempt 1" in sent.log() or "attempt 1" in sent.log())
    slurm.start("slurmctld")
    until("controller", slurm.is_up)
    sent.until_restarted()
    sent.until_gone()
    assert_same_end(sent, reference)


def test_slurmd_dies_and_comes_back(slurm, store, reference):
    sent = send(store, sbatch={"nodelist": "127.0.1.1"})
    sent.until_training()
    slurm.kill("slurmd.127.0.1.1")
    slurm.start("slurmd.127.0.1.1")
    sent.until_gone()
    assert_same_end(sent, reference)


@pytest.mark.slow
def test_node_dies(slurm, store, reference):
    """SLURM notices and requeues, which shows NODE_FAIL for a moment: never is the run called failed or done."""
    sent = send(store, sbatch={"nodelist": "127.0.1.1"})
    sent.until_training(checkpoints=1)
    kill_node(slurm, sent, "127.0.1.1")
    states = set()

    def requeued() -> bool:
        states.add(seen(sent).state)
        return "Restarts=0" not in ask("scontrol", "show", "job", sent.job_id)

    until("node seen dead", requeued)
    slurm.start("slurmd.127.0.1.1")
    sent.until_gone(2 * PATIENCE_S)
    assert not states & {FAILED, DONE}
    assert_same_end(sent, reference)


@pytest.mark.slow
def test_node_is_lost_while_its_job_lives(slurm, store, reference):
    """SLURM requeues the job, but the old process goes on: the restarted one finds the run held, or done, or dies of
    the clash; the work of the old one counts."""
    sent = send(store, sbatch={"nodelist": "127.0.1.1"})
    sent.until_training()
    (process,) = slurm.processes(sent.job_id)
    os.kill(process, signal.SIGSTOP)  # else it would be done before SLURM notices
    slurm.kill("slurmd.127.0.1.1")
    until("node seen dead", lambda: "Restarts=0" not in ask("scontrol", "show", "job", sent.job_id))
    os.kill(process, signal.SIGCONT)
    slurm.start("slurmd.127.0.1.1")
    sent.until_gone(2 * PATIENCE_S)
    until("run", lambda: sent.run.state() == DONE)
    assert_same_end(sent, reference)
    assert seen(sent).state == DONE


def test_stages_are_warned_too(slurm, tmp_path):
    """The job of the shared stages is queued again and goes on; the run waits for it all the while."""
    config = override(CONFIG, {"tokenizer.train.steps": 200, "train.steps": 10})
    undisturbed = Store(tmp_path / "undisturbed")
    Stages(config, undisturbed).tokenizer.run()
    store = Store(tmp_path / "results")
    sent = send(store, config)
    stages = sent.submission.jobs[0]
    paths = [s.stage("tokenizer", config.tokenizer_id).path for s in (store, undisturbed)]
    until("checkpoint", lambda: list(paths[0].glob("checkpoints/step*")))
    ask("scancel", "--signal=USR2", stages.job_id)
    sent.until_gone()
    assert "queued again" in (sent.submission.logs / f"{stages.job_id}_0_log.err").read_text()
    weights = [(path / "tokenizer.safetensors").read_bytes() for path in paths]
    assert weights[0] == weights[1]
    assert store.is_done(config)


def test_failed_stages_take_their_runs_along(slurm, tmp_path):
    """`kill-on-invalid-dep`: the run leaves the queue instead of waiting for ever, and status names the stage."""
    broken = override(CONFIG, {"tokenizer.checkpoint": str(tmp_path / "nowhere.pth")})
    sent = send(Store(tmp_path / "results"), broken)
    sent.until_gone()
    assert seen(sent).state == FAILED
    assert f"tokenizer-{broken.tokenizer_id} failed" in seen(sent).reason and "nowhere.pth" in seen(sent).reason


def test_everything_ends_with_the_test_session(booted):
    """The cluster's owner is killed: nothing of the cluster is left behind."""
    script = Path(__file__).with_name("slurm_cluster.py")
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")) / "c"
    code = (
        "import subprocess, sys, os, signal;"
        f"p = subprocess.Popen([sys.executable, {str(script)!r}, {str(root)!r}], stdin=subprocess.PIPE,"
        "stdout=subprocess.PIPE, text=True); print(p.stdout.readline(), flush=True);"
        f"print(open({str(root / 'pids.json')!r}).read(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL and ended.stdout.startswith("ready\n")
    daemons = json.loads(ended.stdout.splitlines()[-1])
    assert len(daemons) == 4
    until("end of all", lambda: not root.exists() and not any(map(start_time, daemons.values())), 15)
    root.parent.rmdir()
