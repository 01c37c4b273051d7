"""Damaged files of submissions: the others are still seen, nothing is sent twice, and what is lost is said."""

import json
import shutil

import pytest
import tiny_runs
from damages import DAMAGES
from fake_slurm import FakeSlurm

from mvar.cli import main
from mvar.cluster.submission import submissions
from mvar.errors import FAILURE, OK
from mvar.runs.store import Store

SETTINGS = [f"{name}={value}" for name, value in tiny_runs.TINY.items()]


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeSlurm:
    found = FakeSlurm(tmp_path / "bin")
    found.put_on_path(monkeypatch)
    return found


@pytest.fixture
def sent(fake, tmp_path, capfd) -> Store:
    """Two submissions, the runs of seed 0 and those of seed 1; all is queued."""
    store = Store(tmp_path / "results")
    assert submit(store, "0,") == submit(store, "1,") == OK
    capfd.readouterr()
    return store


def submit(store: Store, seeds: str) -> int:
    words = ["submit", "mixers", "--preset", "smoke", "--seeds", seeds, "--cluster", "slurm"]
    return main([*words, "--results", str(store.root), "--set", *SETTINGS])


def damage_first(store: Store, how: str):
    path = submissions(store)[0].folder / "submission.json"
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    return path


def said(capfd, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.mark.parametrize("how", DAMAGES)
def test_the_others_are_seen_and_nothing_is_sent_twice(fake, sent, capfd, how):
    first, second = submissions(sent)
    names = [sorted({k.partition("/")[0] for job in s.jobs for e in job.elements for k in e}) for s in (first, second)]
    path, place, queued = damage_first(sent, how), ["--results", str(sent.root)], fake.lines
    assert len(queued) == 2 * 4 + 1

    code, out, err = said(capfd, "status", *place)
    assert code == FAILURE and "8 queued" in out and all(name in out for name in names[0] + names[1] if "-s" in name)
    assert [str(path) in line for line in err.splitlines()] == [True]
    for seeds in ("0,", "1,", "2"):
        assert submit(sent, seeds) == OK
        assert [str(path) in line for line in capfd.readouterr().err.splitlines()] == [True]
    assert fake.lines == queued
    code, out, err = said(capfd, "retry", "--failed", *place)
    assert code == OK and "nothing failed" in out and fake.lines == queued

    code, out, _ = said(capfd, "repair", *place)  # its jobs are still there: it stays
    assert code == FAILURE and sum(str(path) in line for line in out.splitlines()) == 1 and "in the queue" in out
    assert said(capfd, "repair", "--yes", *place)[0] == FAILURE and path.exists() and fake.lines == queued

    run = next(name for name in names[0] if "-s0-" in name)
    code, out, _ = said(capfd, "cancel", run, *place)
    assert code == OK and run in out and len(fake.lines) == len(queued) - 1
    assert said(capfd, "cancel", "--all", *place)[0] == OK and fake.lines == []

    assert said(capfd, "repair", "--yes", *place)[0] == OK and not path.exists()
    assert submit(sent, "0,") == OK and sum("-runs-" in line for line in fake.lines) == 4
    capfd.readouterr()
    assert said(capfd, "status", *place)[0] == OK


@pytest.mark.parametrize("how", ["empty", "wrong types"])
def test_what_failed_is_sent_again_where_its_profile_is_known(fake, sent, capfd, how):
    path, place = damage_first(sent, how), ["--results", str(sent.root)]
    fake.set_lines()  # all have left the queue
    code, _out, err = said(capfd, "retry", "--failed", *place)
    told = [line for line in err.splitlines() if line.startswith("mvar: error")]
    assert code == FAILURE and len(told) == 4 and all(str(path) in line and "--cluster" in line for line in told)
    assert sum("-runs-" in line for line in fake.lines) == 4
    assert said(capfd, "retry", "--failed", "--cluster", "slurm", *place)[0] == OK
    assert sum("-runs-" in line for line in fake.lines) == 8


def test_logs_of_a_damaged_one_and_of_another(fake, sent, capfd):
    """Ids come from the batch scripts."""
    first, second = submissions(sent)
    damage_first(sent, "null")
    for submission in (first, second):
        (job,) = (job for job in submission.jobs if not job.is_stages)
        (submission.logs / f"{job.element_id(0)}_0_log.out").write_text("hello\n")
        code, out, _ = said(capfd, "logs", job.elements[0][0].partition("/")[0], "--results", str(sent.root))
        assert code == OK and "hello" in out


@pytest.mark.parametrize("how", ["deep", "keys missing", "not UTF-8", "empty"])
def test_damaged_works_of_a_job(fake, sent, capfd, how):
    """What an element makes cannot be read: `retry` says so and sends the others."""
    (job,) = (job for job in submissions(sent)[0].jobs if not job.is_stages)
    path = submissions(sent)[0].folder / f"{job.name}.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(DAMAGES[how](first).replace(b"\n", b"") + b"\n" + b"".join(others))
    fake.set_lines()
    code, _, err = said(capfd, "retry", "--failed", "--results", str(sent.root))
    (line,) = (line for line in err.splitlines() if line.startswith("mvar: error"))
    assert code == FAILURE and str(path) in line and len(line) < 1500
    assert sum("-runs-" in line for line in fake.lines) == 7


def test_nothing_is_sent_beside_jobs_that_nobody_knows(fake, sent, capfd):
    """Description and works are lost, and the jobs are in the queue: they may be any run's."""
    path = damage_first(sent, "cut")
    for works in path.parent.glob("*.jsonl"):
        works.write_bytes(b"")
    queued = fake.lines
    assert submit(sent, "0,") != OK and fake.lines == queued
    err = capfd.readouterr().err
    assert "cannot be read" in err and queued[0].split("|")[0] in err
    code, out, _ = said(capfd, "status", "--results", str(sent.root))
    assert code == FAILURE and "4 queued" in out  # the other submission's
    shutil.rmtree(path.parent)
    fake.set_lines(*(line for line in queued if path.parent.name not in line))
    assert submit(sent, "0,") == OK


@pytest.mark.parametrize(
    ("executor", "what"),
    [("local", "is no SLURM profile"), ("slrum", "executor: 'slrum' is unknown (did you mean 'slurm'?)")],
)
def test_an_edited_executor_sends_nothing(fake, sent, capfd, executor, what):
    """Neither to SLURM, which the profile no longer asks for, nor to another executor."""
    for submission in submissions(sent):
        path = submission.folder / "submission.json"
        values = json.loads(path.read_text())
        values["profile"]["executor"] = executor
        path.write_text(json.dumps(values))
    fake.set_lines()
    code, _, err = said(capfd, "retry", "--failed", "--results", str(sent.root))
    assert code != OK and what in err and fake.lines == []
