"""`mvar submit` ended at every step: whoever comes next finishes or undoes it; every run is queued once and whole."""

import json
import os
import signal
import stat
import time
from dataclasses import replace

import pytest
import tiny_runs
from fake_slurm import FakeSlurm
from killing import end_at, in_child

from mvar.cli import main
from mvar.cluster import scheduler, submission
from mvar.cluster.profiles import Profile
from mvar.cluster.queue import View
from mvar.cluster.submission import Claim, Job, Submission, submissions
from mvar.errors import FAILURE, INTERRUPTED, OK, USER_ERROR
from mvar.files import machine
from mvar.runs.states import FAILED
from mvar.runs.store import Store

SETTINGS = [f"{name}={value}" for name, value in tiny_runs.TINY.items()]
STEPS = [
    ("mvar.cluster.snapshot:take", "after", 1),
    ("mvar.cluster.submission:Submission.write", "before", 1),
    ("mvar.cluster.submission:Submission.write", "after", 1),
    ("submitit.core.utils:CommandFunction.__call__", "before", 1),  # sbatch of the stages
    ("submitit.core.utils:CommandFunction.__call__", "after", 1),
    ("submitit.core.utils:JobPaths.move_temporary_file", "after", 1),  # its script
    ("submitit.core.utils:JobPaths.move_temporary_file", "after", 2),  # its pickle
    ("mvar.cluster.submit:note_job_id", "after", 1),
    ("submitit.core.utils:CommandFunction.__call__", "before", 2),  # sbatch of the runs
    ("submitit.core.utils:CommandFunction.__call__", "after", 2),
    ("submitit.core.utils:JobPaths.move_temporary_file", "after", 3),  # their script
    ("submitit.core.utils:JobPaths.move_temporary_file", "after", 4),  # a pickle of three
    ("submitit.core.utils:JobPaths.move_temporary_file", "after", 6),  # the last
    ("mvar.cluster.submit:note_job_id", "before", 2),
    ("mvar.cluster.submit:note_job_id", "after", 2),
    ("mvar.cluster.submit:note_sent", "after", 1),
]


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeSlurm:
    found = FakeSlurm(tmp_path / "bin")
    found.put_on_path(monkeypatch)
    return found


def submit(store: Store, *more: str) -> int:
    command = ["submit", "layers", "--preset", "smoke", "--set", *SETTINGS, "--results", str(store.root)]
    return main([*command, "--cluster", "slurm", *more])


def assert_whole(store: Store, fake: FakeSlurm) -> None:
    """Every line of the queue has its pickle and its owner, and every run and stage is made by one element."""
    found = [(job, index, s) for s in submissions(store) for job in s.jobs for index in range(len(job.elements))]
    keys = []
    for line in fake.lines:
        job_id, name = line.split("|")[:2]
        ((job, index, sent),) = [(j, i, s) for j, i, s in found if j.name == name and j.element_id(i) == job_id]
        assert (sent.logs / f"{job_id}_submitted.pkl").is_file() and index not in job.undone
        keys += job.elements[index]
    assert len(keys) == len(set(keys)) and sum("/" in key for key in keys) == 3 and len(keys) >= 6
    assert not any(s.claim for s in submissions(store))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[0].rpartition(':')[2]}-{step[1]}-{step[2]}")
def test_submit_ends_at_any_step_and_the_next_one_goes_on(fake, tmp_path, step, number):
    store = Store(tmp_path / "results")

    def ended() -> int:
        end_at(step, number)
        return submit(store)

    code = in_child(ended)
    assert code == (-number if number == signal.SIGKILL else INTERRUPTED)
    if number == signal.SIGINT and step[0] != "mvar.cluster.submit:note_sent" and "snapshot" not in step[0]:
        assert fake.lines == [] or submissions(store)[0].claim  # undone at once, or by whoever comes next
    assert submit(store) == OK
    assert_whole(store, fake)
    assert submit(store) == OK  # and nothing is left to be sent
    assert_whole(store, fake)


def test_status_settles_and_retry_sends_again(fake, tmp_path, capsys):
    store = Store(tmp_path / "results")

    def ended() -> int:
        end_at(("submitit.core.utils:JobPaths.move_temporary_file", "after", 5), signal.SIGKILL)
        return submit(store)

    assert in_child(ended) == -signal.SIGKILL
    capsys.readouterr()
    results = ["--results", str(store.root)]
    assert main(["status", *results]) == OK
    said = capsys.readouterr()
    assert "3 of 4 elements are sent and kept, 1 were in the queue without their files" in said.err
    assert "2 queued" in said.out and "1 missing" in said.out
    assert len(fake.lines) == 3
    assert main(["retry", "--failed", *results]) == OK
    assert_whole(store, fake)


def test_a_dry_run_settles_nothing(fake, tmp_path, capsys):
    store = Store(tmp_path / "results")

    def ended() -> int:
        end_at(("submitit.core.utils:CommandFunction.__call__", "after", 1), signal.SIGKILL)
        return submit(store)

    in_child(ended)
    before = (submissions(store)[0].folder / "submission.json").read_bytes()
    assert submit(store, "--dry-run") == OK
    assert "3 to submit" in capsys.readouterr().out and len(fake.lines) == 1
    assert (submissions(store)[0].folder / "submission.json").read_bytes() == before


def test_an_sbatch_that_outlives_its_submit_is_cancelled(fake, tmp_path):
    """The process was killed, its sbatch was not, and reached the controller after the submission had been undone."""
    store = Store(tmp_path / "results")

    def ended() -> int:
        end_at(("submitit.core.utils:CommandFunction.__call__", "before", 1), signal.SIGKILL)
        return submit(store)

    in_child(ended)
    assert submit(store) == OK
    late = submissions(store)[0].jobs[0].name
    fake.set_lines(*fake.lines, f"99|{late}|PENDING|Priority|1:00:00|")
    assert View(store).queue.problem == ""
    assert_whole(store, fake)


def test_a_claim_holds_while_its_process_may_live():
    claim = Claim.now()
    assert not claim.holds()  # this process's: it is not at it now
    other = replace(claim, pid=os.getppid(), began="1")
    assert not other.holds()  # the number was given to another process
    assert not replace(claim, pid=2**22 + 1).holds()  # no such process
    assert replace(claim, machine="elsewhere").holds()
    assert not replace(claim, machine="elsewhere", until=time.time() - 1).holds()
    parent = replace(claim, pid=os.getppid(), began=submission.process_began(os.getppid()))
    assert parent.machine == machine() and parent.holds()


def test_the_claim_of_another_machine_is_waited_for(fake, tmp_path, monkeypatch, capsys):
    store = Store(tmp_path / "results")
    assert submit(store) == OK
    found = submissions(store)[0]
    monkeypatch.setattr(submission, "CLAIM_LOOK_S", 0.01)
    monkeypatch.setattr(submission, "EXCLUSIVE_TIMEOUT_S", 0.05)
    replace(found, claim=replace(Claim.now(), machine="elsewhere")).write()
    assert submit(store, "--seeds", "2") == USER_ERROR
    assert "one at a time" in capsys.readouterr().err
    replace(found, claim=replace(Claim.now(), machine="elsewhere", until=time.time() + 0.03)).write()
    monkeypatch.setattr(submission, "EXCLUSIVE_TIMEOUT_S", 60)
    assert submit(store, "--seeds", "2") == OK
    assert len(fake.lines) == 7


@pytest.mark.slow
def test_three_thousand_submissions(fake, tmp_path):
    """No argument is longer than the kernel takes, and every job is found."""
    store = Store(tmp_path / "results")
    lines = []
    for number in range(3000):
        folder = store.root.absolute() / "submissions" / f"20260101-000000-{number:06}-abcd"
        folder.mkdir(parents=True)
        names = (f"mvar-{folder.name}-stages", f"mvar-{folder.name}-runs-0")
        jobs = tuple(Job(name, ((f"run{number}/{name[-1]}",),), str(number)) for name in names)
        Submission(folder, Profile(), tmp_path, "", jobs).write()
        lines.append(f"{number}|{names[1]}|PENDING|Priority|1:00:00|")
    fake.set_lines(*lines)
    queue = View(store).queue
    assert queue.problem == ""
    assert sum(owner.entry is not None for owner in queue.owners.values()) == 3000
    asked = (fake.folder / "asked").read_text().splitlines()
    assert 2 < len(asked) < 10 and max(map(len, asked)) < 100_000


def test_many_are_cancelled_in_turn(fake, monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_IDS", 100)
    fake.set_lines(*(f"{n}|a|PENDING|x|1:00|" for n in range(250)))
    scheduler.cancel(str(n) for n in range(249))
    assert fake.lines == ["249|a|PENDING|x|1:00|"]
    assert len((fake.folder / "cancelled").read_text().splitlines()) == 3


@pytest.mark.parametrize(("size", "jobs"), [("0", 4), ("1", 4), ("2", 3), ("1001", 2)])
def test_sites_with_small_arrays_or_none(fake, tmp_path, capsys, size, jobs):
    (fake.folder / "max_array").write_text(f"{size}\n")
    store = Store(tmp_path / "results")
    assert submit(store) == OK
    assert len({line.partition("|")[0].partition("_")[0] for line in fake.lines}) == jobs and len(fake.lines) == 4
    assert ("array_parallelism does not count" in capsys.readouterr().err) == (jobs == 4)
    assert_whole(store, fake)


def test_a_configuration_that_says_nothing_is_one_line(fake, tmp_path, capsys):
    (fake.folder / "max_array").write_text("(null)\n")
    assert submit(Store(tmp_path / "results")) == USER_ERROR
    assert "MaxArraySize is '(null)'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["load%user", "100%", "back\\slash", "quo'te", "line\nbreak"])
def test_paths_that_slurm_reads_in_its_own_way_are_refused(fake, tmp_path, capsys, name):
    store = Store(tmp_path / name / "results")
    assert submit(store) == USER_ERROR
    line = capsys.readouterr().err
    assert line.startswith("mvar: error: results: ") and name[:4] in line and line.count("\n") == 1
    assert not store.root.exists() and fake.lines == []


def test_a_space_in_the_path_is_no_mistake(fake, tmp_path):
    store = Store(tmp_path / "my results")
    assert submit(store) == OK
    assert_whole(store, fake)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "a,b"), ("name", "a\n#SBATCH --uid=0"), ("name", 7), ("elements", 3), ("elements", [[1]])],
)  # fmt: skip
def test_a_damaged_submission_is_named(fake, tmp_path, capsys, field, value):
    store = Store(tmp_path / "results")
    assert submit(store) == OK
    path = submissions(store)[0].folder / "submission.json"
    values = json.loads(path.read_text())
    values["jobs"][0][field] = value
    path.write_text(json.dumps(values))
    queued = fake.lines
    assert main(["status", "--results", str(store.root)]) == FAILURE
    out, line = capsys.readouterr()
    assert (str(path) in line and "not as this version writes it" in line) or "damaged" in line
    assert line.count("\n") == 1 and "3 queued" in out  # from the files beside it
    assert submit(store) == OK and fake.lines == queued


def test_variables_and_what_holds_them_are_the_users_alone(fake, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('env = {TOKEN = "geheim-7351"}\n')
    store = Store(tmp_path / "results")
    previous = os.umask(0o002)
    try:
        assert submit(store, "--cluster", str(path)) == OK
        assert os.umask(0o002) == 0o002  # what sbatch hands on to the job
    finally:
        os.umask(previous)
    holding = [p for p in store.root.rglob("*") if p.is_file() and b"geheim-7351" in p.read_bytes()]
    assert len([p for p in holding if not p.is_symlink()]) == 3  # submission.json, two scripts
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in holding)
    other = Store(tmp_path / "other")
    assert submit(other) == OK
    assert stat.S_IMODE((submissions(other)[0].folder / "submission.json").stat().st_mode) == 0o644


def all_lost(fake: FakeSlurm, store: Store) -> None:
    """As if every job had left the queue before it began."""
    assert submit(store) == OK
    fake.set_lines()


def test_retry_takes_shell_lines_from_the_profile(fake, tmp_path, capsys):
    """Whoever may write the results must not write what the next retry's shell runs."""
    path = tmp_path / "mine.toml"
    path.write_text('setup = ["module load cuda"]\nenv = {A = "1"}\nmem_gb = 3\n')
    store = Store(tmp_path / "results")
    assert submit(store, "--cluster", str(path)) == OK
    fake.set_lines()
    document = submissions(store)[0].folder / "submission.json"
    values = json.loads(document.read_text())
    values["profile"]["setup"].append("touch /tmp/pwned")
    values["profile"]["env"]["LD_PRELOAD"] = "/tmp/evil.so"
    document.write_text(json.dumps(values))
    capsys.readouterr()
    assert main(["retry", "--failed", "--results", str(store.root)]) == OK
    warnings = capsys.readouterr().err
    assert "touch /tmp/pwned" in warnings and "LD_PRELOAD" in warnings and warnings.count("mvar: warning: retry") == 2
    again = submissions(store)[1]
    assert again.profile.setup == ("module load cuda",) and again.profile.env == {"A": "1"}
    assert again.profile.mem_gb == 3
    scripts = "".join(p.read_text() for p in again.logs.glob("*_submission.sh"))
    assert "module load cuda" in scripts and "pwned" not in scripts and "evil" not in scripts


def test_retry_needs_the_profile_only_for_shell_lines(fake, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text("mem_gb = 3\n")
    store = Store(tmp_path / "results")
    assert submit(store, "--cluster", str(path)) == OK
    path.unlink()
    fake.set_lines()
    assert main(["retry", "--failed", "--results", str(store.root)]) == OK
    assert submissions(store)[1].profile.mem_gb == 3
    document = submissions(store)[1].folder / "submission.json"
    values = json.loads(document.read_text())
    values["profile"]["setup"] = ["true"]
    document.write_text(json.dumps(values))
    fake.set_lines()
    capsys.readouterr()
    assert main(["retry", "--failed", "--results", str(store.root)]) == USER_ERROR
    assert "cannot be read" in capsys.readouterr().err and len(submissions(store)) == 2
    path.write_text('setup = ["touch /tmp/pwned"]\n')
    path.chmod(0o666)
    assert main(["retry", "--failed", "--results", str(store.root)]) == USER_ERROR
    assert "mode 0666" in capsys.readouterr().err
    assert main(["retry", "--failed", "--cluster", "slurm", "--results", str(store.root)]) == OK


def test_stages_that_wait_for_each_other_have_an_answer(fake, tmp_path):
    """What never began is asked for why, once each: cycles of stages and a thousand of them end."""
    store = Store(tmp_path / "results")
    for number in range(1500):  # each submission's run waits for a stage that the next one has taken over
        folder = store.root.absolute() / "submissions" / f"{number:06}"
        folder.mkdir(parents=True)
        following = (number + 1) % 1500
        jobs = (
            Job(f"s{number}-stages", ((f"tokenizer-{following:08}", f"tokenizer-{number:08}"),), f"{2 * number + 1}"),
            Job(f"s{number}-runs-0", ((f"run{number}/e",),), f"{2 * number + 2}"),
        )
        Submission(folder, Profile(), tmp_path, "", jobs).write()
    view = View(store)
    seen = view(store.run("run7"))
    assert seen.state == FAILED and "left the queue before it began" in seen.reason
    assert "tokenizer-" in seen.reason and len(seen.reason) < 400
    stage = view(store.stage("tokenizer", f"{3:08}"))
    assert stage.state == FAILED and "before it began" in stage.reason
    store.stage("tokenizer", f"{700:08}").path.mkdir(parents=True)
    store.stage("tokenizer", f"{700:08}").write_status(FAILED, "tokenizer", reason="no pictures")
    assert "tokenizer-00000700 failed (no pictures)" in view(store.run("run5")).reason


def test_status_and_retry_after_jobs_that_never_began(fake, tmp_path, capsys):
    store = Store(tmp_path / "results")
    all_lost(fake, store)
    assert main(["status", "--results", str(store.root)]) == OK
    assert "3 failed" in capsys.readouterr().out
    stages = submissions(store)[0].jobs[0].elements[0]
    for key in stages:
        kind, _, name = key.partition("-")
        assert View(store)(store.stage(kind, name)).state == FAILED
    assert main(["retry", "--failed", "--results", str(store.root)]) == OK
    assert_whole(store, fake)
