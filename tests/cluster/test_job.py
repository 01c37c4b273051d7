"""What needs no SLURM: when a job gives up, the code's snapshot, causes of death, the executors of one machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_slurm import FakeSlurm
from slurm_jobs import CONFIG

from mvar.cli import main
from mvar.cluster import job, scheduler, snapshot
from mvar.cluster.profiles import Profile
from mvar.cluster.queue import View, _in_queue, cause_of_death
from mvar.cluster.submission import Job, Submission
from mvar.config import override
from mvar.errors import FAILURE, OK, UserError
from mvar.runs import environment, signals
from mvar.runs.executors import inprocess
from mvar.runs.states import DONE, FAILED, QUEUED, RUNNING, STOPPED, Stopped
from mvar.runs.store import Directory, Store


def process(tmp_path, ran_s: float) -> job._Process:
    """A job's process that has run for a while and stands at a step."""
    found = object.__new__(job._Process)
    found._submission = Submission(tmp_path, Profile(timeout_min=10), tmp_path, "")
    found._environment = SimpleNamespace(job_id="7_1")
    found._began = time.monotonic() - ran_s
    found._progress = ("a-run", "train", 3)
    return found


def test_time_limits_without_progress_end_a_run(tmp_path):
    assert process(tmp_path, 600)._idle() == "" == process(tmp_path, 600)._idle()
    assert "3 time limits in a row ended at train 3" in process(tmp_path, 600)._idle()
    moved = process(tmp_path, 600)
    moved._progress = ("a-run", "train", 4)
    assert moved._idle() == ""
    anew = process(tmp_path, 600)
    for images in (500, 700, 600):  # an evaluation that never ends in time gets nowhere, however far it comes
        anew.progress("evaluate", images, 1000)
        said = anew._idle()
    assert "3 time limits in a row ended at evaluate" in said
    assert [process(tmp_path, 5)._idle() for _ in range(5)] == [""] * 5  # preempted at once, again and again


def test_a_warning_longer_than_the_limit_does_not_go_on_for_ever(tmp_path):
    """SLURM may warn up to a minute too early: of four minutes' limit with 200 s of warning nothing is left."""
    said = []
    for _ in range(3):
        warned = process(tmp_path, 2)
        warned._submission = Submission(tmp_path, Profile(timeout_min=4, signal_delay_s=200), tmp_path, "")
        said.append(warned._idle())
    assert said[:2] == ["", ""] and "a longer timeout_min" in said[2]


def test_the_state_of_an_element_is_its_own(monkeypatch):
    """An array and its last element share a number, and squeue then lists all elements, the pending ones first."""
    lines = "12_1 PENDING\n12_0 COMPLETING\n12_2 RUNNING\n"
    monkeypatch.setattr(scheduler, "call", lambda *command: lines)
    assert [scheduler.job_state(f"12_{i}") for i in (0, 1, 2, 3)] == ["COMPLETING", "PENDING", "RUNNING", None]


def test_defaults_of_the_users_shell_hide_nothing(monkeypatch, tmp_path):
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\necho "${SQUEUE_STATES:-all}"\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("SQUEUE_STATES", "R")
    assert scheduler.call(str(squeue)) == "all\n"


@pytest.mark.parametrize(
    ("state", "reason", "shown", "why"),
    [
        ("PENDING", "Priority", QUEUED, "Priority"),
        ("PENDING", "JobHeldUser", QUEUED, "scontrol release 12_3"),
        ("REQUEUE_HOLD", "launch failed requeued held", QUEUED, "launch failed requeued held"),
        ("SPECIAL_EXIT", "None", QUEUED, "scontrol release"),
        ("REQUEUE_FED", "None", QUEUED, ""),
        ("SIGNALING", "None", RUNNING, "time limit in 1:00:00"),
    ],
)
def test_every_state_of_squeue_says_what_to_expect(tmp_path, state, reason, shown, why):
    seen = _in_queue(None, scheduler.Entry("12_3", "name", state, reason, "1:00:00", "n1"))
    assert seen.state == shown and why in seen.reason


def test_a_run_of_another_living_job_is_refused(tmp_path, monkeypatch):
    store = Store(tmp_path)
    run = store.run(CONFIG.run_id)
    run.write_status(RUNNING, "train", job="8")
    work = SimpleNamespace(kind="run", config=CONFIG, name=run.name)
    monkeypatch.setattr(scheduler, "job_state", {"8": "RUNNING"}.get)
    with pytest.raises(UserError, match="being made by job 8"):
        process(tmp_path, 0)._refuse_second(store, work)
    monkeypatch.setattr(scheduler, "job_state", {"8": None}.get)
    process(tmp_path, 0)._refuse_second(store, work)


def test_a_process_ends_once_another_start_has_its_run(tmp_path, monkeypatch):
    """As on a node that SLURM has lost, where locks do not reach: nothing more is written."""
    found, store = process(tmp_path, 0), Store(tmp_path)
    found._run, found._owner, found._signals = store.run("a-run"), {"job": "7_1", "start": "0"}, []
    found._was_ours, found._looked = False, -1.0
    monkeypatch.setattr(job, "LOOK_S", -1.0)
    monkeypatch.setattr(job.os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    found._run.path.mkdir(parents=True)
    found._run.write_status(RUNNING, "train", job="7_1", start="1")  # another start's: this one waits for the lock
    assert not found.should_stop()
    found._run.write_status(RUNNING, "train", job="7_1", start="0")
    assert not found.should_stop()
    found._run.write_status(RUNNING, "train", step=5)
    assert not found.should_stop()
    found._run.write_status(RUNNING, "tokenizer", job="7_1", start="1")
    with pytest.raises(SystemExit) as ended:
        found.should_stop()
    assert ended.value.code == job.LEFT_OVER


def test_equal_code_shares_one_snapshot_and_knows_its_commit(tmp_path, monkeypatch):
    folder = snapshot.take(tmp_path / "code")
    assert snapshot.take(tmp_path / "code") == folder
    assert (folder / "mvar/cluster/job.py").read_bytes() == Path(job.__file__).read_bytes()
    found = json.loads((folder / "snapshot.json").read_text())
    monkeypatch.setattr(environment, "__file__", str(folder / "mvar/runs/environment.py"))
    environment.git_state.cache_clear()
    assert environment.git_state() == found | {"snapshot": folder.name}
    environment.git_state.cache_clear()


def checkout(root: Path, monkeypatch, *names: str) -> list[str]:
    """Code of its own, with some files, under git."""
    for name in ("mvar/old.py", *names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name} = 1\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-f", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(snapshot, "ROOT", root)
    return git


SECRETS = (".env", "site.pem", "id_ed25519", "id_rsa.pub", "server.key", ".netrc", ".ssh/config", "Deploy.PEM")


@pytest.mark.parametrize("with_git", [True, False])
def test_a_snapshot_has_no_keys_nor_what_a_link_takes_from_elsewhere(tmp_path, monkeypatch, with_git):
    root = tmp_path / "checkout"
    names = [*SECRETS, "id_map.py", "notes/a.txt", "notes/b.txt", "big.bin", "deep/er/c.dat", "c.dat"]
    checkout(root, monkeypatch, *(f"mvar/{name}" for name in names))
    (root / ".mvarignore").write_text("# not for nodes\nnotes/\n!b.txt\n*.bin\n/mvar/c.dat\n")
    (tmp_path / "outside.txt").write_text("private")
    (root / "mvar/outside.txt").symlink_to(tmp_path / "outside.txt")
    (root / "mvar/beside.txt").symlink_to("old.py")
    (root / "mvar/hidden.txt").symlink_to(".env")
    for name in (*SECRETS, "notes/a.txt", "old.py"):
        (root / "mvar" / name).write_text("geheim" if name != "old.py" else "old = 2\n")
    if not with_git:
        shutil.rmtree(root / ".git")
    folder = snapshot.take(tmp_path / "code")
    found = {str(p.relative_to(folder / "mvar")) for p in (folder / "mvar").rglob("*") if p.is_file()}
    assert found == {"old.py", "id_map.py", "notes/b.txt", "deep/er/c.dat", "beside.txt"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    diff = (folder / "diff.patch").read_text()
    assert "geheim" not in diff and ("+old = 2" in diff) == with_git


def changed_file(folder: Path) -> None:
    (folder / "mvar/old.py").write_text("import os\n")


def more_code(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("import os\n")


def less_code(folder: Path) -> None:
    (folder / "mvar/old.py").unlink()


def linked_code(folder: Path) -> None:
    text = (folder / "mvar/old.py").read_text()
    (folder.parent / "old.py").write_text(text)
    (folder / "mvar/old.py").unlink()
    (folder / "mvar/old.py").symlink_to(folder.parent / "old.py")


def other_digest(folder: Path) -> None:
    (folder / "snapshot.json").write_text('{"commit": null, "dirty": null, "sha256": "0"}')


@pytest.mark.parametrize("change", [changed_file, more_code, less_code, linked_code, other_digest])
def test_a_changed_snapshot_is_made_anew(tmp_path, monkeypatch, capsys, change):
    checkout(tmp_path / "checkout", monkeypatch)
    folder = snapshot.take(tmp_path / "code")
    (folder / "mvar/__pycache__").mkdir()
    (folder / "mvar/__pycache__/old.cpython-311.pyc").write_bytes(b"of a job that ran it")
    assert snapshot.take(tmp_path / "code") == folder and capsys.readouterr().err == ""
    change(folder)
    assert snapshot.take(tmp_path / "code") == folder
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "was changed after it was made" in said and str(folder) in said
    assert {p.name for p in folder.rglob("*.py")} == {"old.py"}
    assert (folder / "mvar/old.py").read_text() == "mvar/old.py = 1\n"
    assert snapshot.take(tmp_path / "code") == folder and capsys.readouterr().err == ""


def test_half_a_snapshot_of_a_killed_process_goes_after_a_day(tmp_path, monkeypatch):
    checkout(tmp_path / "checkout", monkeypatch)
    folders = [tmp_path / "code" / name for name in (".taking-old", ".taking-new")]
    for folder, age_s in zip(folders, (25 * 3600, 0), strict=True):
        folder.mkdir(parents=True)
        os.utime(folder, (0, time.time() - age_s))
    (tmp_path / "code").chmod(0o755)
    snapshot.take(tmp_path / "code")
    assert [folder.exists() for folder in folders] == [False, True]


@pytest.mark.parametrize(("name", "mode"), [("", 0o777), ("mvar", 0o775), ("mvar/old.py", 0o666), ("..", 0o777)])
def test_a_snapshot_that_others_may_write_is_refused(tmp_path, monkeypatch, name, mode):
    checkout(tmp_path / "checkout", monkeypatch)
    previous = os.umask(0o002)
    try:
        folder = snapshot.take(tmp_path / "code")
        assert snapshot.take(tmp_path / "code") == folder  # this user's umask is no reason
    finally:
        os.umask(previous)
    (folder / name).chmod(mode)
    with pytest.raises(UserError, match=f"mode {mode:04o}, others may write it"):
        snapshot.take(tmp_path / "code")


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file away")
def test_a_snapshot_of_another_user_is_refused(tmp_path, monkeypatch):
    checkout(tmp_path / "checkout", monkeypatch)
    folder = snapshot.take(tmp_path / "code")
    os.chown(folder / "mvar/old.py", 12345, 12345)
    with pytest.raises(UserError, match="belongs to user 12345"):
        snapshot.take(tmp_path / "code")


def test_a_snapshot_has_what_git_tracks_new_files_and_the_difference(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    (root / "mvar").mkdir(parents=True)
    (root / "mvar/old.py").write_text("old = 1\n")
    (root / ".gitignore").write_text("*.log\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (root / "mvar/old.py").write_text("old = 2\n")
    (root / "mvar/new.py").write_text("new = 1\n")
    (root / "mvar/junk.log").write_text("")
    monkeypatch.setattr(snapshot, "ROOT", root)
    folder = snapshot.take(tmp_path / "code")
    assert {p.name for p in (folder / "mvar").iterdir()} == {"old.py", "new.py"}
    assert "+old = 2" in (folder / "diff.patch").read_text()
    assert json.loads((folder / "snapshot.json").read_text())["dirty"] is True
    (root / "mvar/new.py").write_text("new = 2\n")
    assert snapshot.take(tmp_path / "code") != folder
    shutil.rmtree(root / ".git")  # an installed package: no repository
    assert json.loads((snapshot.take(tmp_path / "code") / "snapshot.json").read_text())["commit"] is None


@pytest.mark.parametrize("installed", [True, False])
def test_a_snapshot_has_no_profiles_nor_what_lies_beside_an_installed_wheel(tmp_path, monkeypatch, installed):
    """Not even where another package has left a pyproject.toml there."""
    own = {"mvar/old.py", "mvar/_shipped/experiments/a.py"} if installed else {"mvar/old.py"}
    beside = ["experiments/a.py", "analysis/b.py", "pyproject.toml"]
    checkout(tmp_path / "site", monkeypatch, *own, *beside, "slurm/mine.toml", "torch/c.py")
    shutil.rmtree(tmp_path / "site" / ".git")
    folder = snapshot.take(tmp_path / "code")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - set(snapshot.OWN)
    assert found == (own if installed else own | set(beside))


def test_a_snapshot_of_a_wheel_whose_files_are_links_to_a_cache(tmp_path, monkeypatch):
    checkout(tmp_path / "site", monkeypatch, "mvar/_shipped/experiments/a.py")
    shutil.rmtree(tmp_path / "site" / ".git")
    (tmp_path / "cache").mkdir()
    file = tmp_path / "site" / "mvar" / "old.py"
    file.rename(tmp_path / "cache" / "old.py")
    file.symlink_to(tmp_path / "cache" / "old.py")
    copy = snapshot.take(tmp_path / "code") / "mvar" / "old.py"
    assert copy.is_file() and not copy.is_symlink()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["srun: error: n1: task 0: Killed", "slurmstepd: error: Detected 1 oom-kill event(s)"], "out of memory"),
        (["slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***"], "time limit"),
        (["x CANCELLED AT 2026 DUE TO JOB REQUEUE ***", "slurmstepd: *** STEP 5.0 CANCELLED AT 2026 ***"], "cancelled"),
        (["task 0: Killed", "x CANCELLED AT 2026 DUE TO JOB REQUEUE ***"], "cause unknown"),  # an earlier start's
        (
            ["*** JOB 5 ON n1 CANCELLED AT 2026 DUE TO PREEMPTION ***", "mvar: start 1", "n1: task 0: Killed"],
            "a process",
        ),
        (["*** JOB 5 ON n1 CANCELLED AT 2026 DUE TO NODE FAILURE ***", "mvar: start 1"], "cause unknown"),
        (["mvar: preempted", "queued again"], "preempted"),
        (["mvar: preempted", "mvar: start 1"], "cause unknown"),
        (
            ["OSError: [Errno 28] No space left on device: '/scratch/r/model.safetensors'", "n1: task 1: Killed"],
            "the disk is full (OSError: [Errno 28] No space left on device: '/scratch/r/model.safetensors'",
        ),
        (["OSError: [Errno 122] Disk quota exceeded: '/r/status.json'", "srun: error"], "the disk is full (OSError"),
        (
            ["OSError: [Errno 30] Read-only file system: '/r/status.json'", "DUE TO TIME LIMIT"],
            "the file system is read-only (OSError: [Errno 30] Read-only file system: '/r/status.json'",
        ),
        (["OSError: [Errno 116] Stale file handle: '/r/x'"], "the file system is gone (OSError: [Errno 116] Stale"),
        (["OSError: [Errno 5] Input/output error: '/r/x'"], "the file system does not work (OSError: [Errno 5]"),
    ],
)
def test_causes_are_read_from_what_slurm_wrote(tmp_path, lines, said):
    (tmp_path / "1_0_log.err").write_text("\n".join(lines))
    assert cause_of_death([tmp_path / "1_0_log.err"]).startswith(said)


def submitted(store: Store, state: str, *log: str) -> Directory:
    """A run as a job of one element has left it, with the job's log."""
    run = store.run("a-run")
    run.path.mkdir(parents=True)
    run.write_status(state, "train", job="7")
    folder = store.root.absolute() / "submissions" / "1"
    Submission(folder, Profile(), folder, "", (Job("mvar-1", (("a-run/e",),), "7"),)).write()
    (folder / "logs").mkdir()
    (folder / "logs" / "7_0_log.err").write_text("\n".join(log))
    return run


PREEMPTION = "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026 DUE TO PREEMPTION ***"


@pytest.mark.parametrize("state", [RUNNING, STOPPED, FAILED])  # FAILED: the first process saw others die
@pytest.mark.parametrize(
    ("queued", "shown", "said"),
    [
        ("PENDING|BeginTime", QUEUED, "preempted, queued again (BeginTime)"),
        ("REQUEUED|None", QUEUED, "preempted, queued again"),
        ("COMPLETING|None", STOPPED, "preempted, its job is ending or about to be queued again"),
        (None, STOPPED, "preempted (slurmstepd"),  # a site that does not queue it again
    ],
)
def test_a_preempted_run_is_never_failed(tmp_path, monkeypatch, state, queued, shown, said):
    fake = FakeSlurm(tmp_path / "bin")
    fake.put_on_path(monkeypatch)
    store = Store(tmp_path / "results")
    run = submitted(store, state, "mvar: start 0", PREEMPTION)
    if queued:
        fake.set_lines("7|mvar-1|{}|{}|1:00|".format(*queued.split("|")))
    seen = View(store)(run)
    assert seen.state == shown and said in seen.reason
    lines = ["mvar: start 0", PREEMPTION, "mvar: start 1", "Segmentation fault"]
    (store.root / "submissions/1/logs/7_0_log.err").write_text("\n".join(lines))
    assert "preempted" not in View(store)(run).reason  # what an earlier start was told


def test_a_run_that_left_early_by_itself_is_preempted_too(tmp_path, monkeypatch):
    """With a time of grace the job queues itself again, before SLURM would end it."""
    fake = FakeSlurm(tmp_path / "bin")
    fake.put_on_path(monkeypatch)
    store = Store(tmp_path / "results")
    requeue = "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026 DUE TO JOB REQUEUE ***"
    run = submitted(store, STOPPED, "mvar: start 0", "mvar: preempted", "queued again", requeue)
    fake.set_lines("7|mvar-1|PENDING|BeginTime|1:00|")
    assert View(store)(run).reason == "preempted, queued again (BeginTime)"
    (store.root / "submissions/1/logs/7_0_log.err").write_text(f"mvar: start 0\nqueued again\n{requeue}")
    assert View(store)(run).reason == "BeginTime"  # by a time limit, or by hand


def test_what_could_not_be_written_is_named_where_the_status_could_not_be_either(tmp_path, monkeypatch):
    FakeSlurm(tmp_path / "bin").put_on_path(monkeypatch)
    store = Store(tmp_path / "results")
    error = f"OSError: [Errno 30] Read-only file system: '{'/long' * 40}/status.json'"
    run = submitted(store, RUNNING, "mvar: start 0", error, "srun: error: n1: task 0: Exited with 1")
    seen = View(store)(run)
    assert seen.state == FAILED and error in seen.reason


def test_a_full_disk_is_told_in_one_go_and_does_not_keep_the_job_from_the_queue(tmp_path, monkeypatch, capsys):
    found = process(tmp_path, 600)

    def full(path, *more):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(job, "atomic_write", full)
    assert found._idle() == ""
    monkeypatch.setattr(found, "_leave", lambda reason: full("status.json"), raising=False)
    assert found._guarded(lambda: (_ for _ in ()).throw(Stopped("asked"))) == FAILURE
    assert "[Errno 28] No space left on device: 'status.json'" in capsys.readouterr().err


def test_in_process_the_next_run_goes_on_after_a_failure(store, reference):
    broken = override(CONFIG, {"train.init_from": "/nowhere.pth"})
    summary = inprocess.run_all([broken, CONFIG], store)
    assert set(summary.failures) == {broken.run_id}
    assert summary.outcomes[f"{CONFIG.run_id}/{CONFIG.evaluation_id}"].state == DONE
    assert summary.num_done == 1 and "nowhere.pth" in summary.complaints()[0]
    weights = [Store(root).run(CONFIG.run_id).weights.read_bytes() for root in (store.root, reference)]
    assert weights[0] == weights[1]


def test_a_closed_terminal_stops_and_never_ends_at_once():
    """SIGHUP comes more than once where a terminal closes; under nohup it stays ignored."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with signals.collected() as received:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert received == [signal.SIGHUP] * 2
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with signals.collected():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_local_and_inprocess_are_the_same_command(monkeypatch, tmp_path):
    """Which executor gets the runs; that they make them is tested above and in tests/runs/test_runner.py."""
    from mvar.runs import runner

    asked = {}
    for module, name in ((runner, "local"), (inprocess, "inprocess")):
        monkeypatch.setattr(
            module, "run_all", lambda configs, store, *more, name=name: asked.setdefault(name, runner.Summary())
        )
    command = ["submit", "layers", "--preset", "smoke", "--results", str(tmp_path), "--cluster"]
    assert main([*command, "local", "--cluster-set", "workers=2"]) == OK
    assert main([*command, "inprocess"]) == OK
    assert list(asked) == ["local", "inprocess"]


def test_doctor_survives_what_it_examines(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor", "--results", str(tmp_path)]) == FAILURE
    said = capsys.readouterr().out
    assert "broken  torch" in said and "pip install torch" in said and "results" in said


def test_without_slurm_there_is_a_way_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    results = ["--results", str(tmp_path)]
    assert main(["submit", "layers", "--preset", "smoke", "--cluster", "slurm", *results]) == 2
    assert "--cluster local" in capsys.readouterr().err
    assert main(["doctor", *results]) == OK
    assert main(["doctor", "--cluster", "slurm", *results]) == FAILURE
    assert main(["status", *results]) == OK
