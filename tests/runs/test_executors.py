"""Executors by name: an unknown one is an error that lists what is there, never another one."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny_runs

from mvar import plugins
from mvar.cli import main
from mvar.cluster.profiles import PROFILES, load_profile
from mvar.errors import OK, USER_ERROR, UserError
from mvar.registries import EXECUTORS
from mvar.runs.executors.contract import Executor, Summary, find
from mvar.runs.states import FAILED
from mvar.runs.workers import Outcome

NAMES = ("slurm", "local", "inprocess")
SETTINGS = [f"{name}={value}" for name, value in tiny_runs.TINY.items()]


@pytest.fixture(autouse=True)
def own(monkeypatch):
    monkeypatch.setattr(EXECUTORS, "own", {})


class Noted(Executor):
    """Notes what it is given."""

    requests = None

    def uses(self, field):
        return field == "env"

    def execute(self, requests, store, dry_run=False):
        type(self).requests = requests
        return Summary(num_runs=len(requests[0][1]), num_done=len(requests[0][1]))


def submit(root, *words):
    words = ["submit", "layers", "--preset", "smoke", "--results", str(root), *words, "--set", *SETTINGS]
    return main(words)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_one_executor(name):
    assert EXECUTORS.names() == list(NAMES)
    assert isinstance(find(name), Executor)
    assert find(name).is_queue == (name == "slurm")


def test_a_failure_says_a_run_s_name_once():
    """Runs that fail for one reason are one line."""
    reason = "run {}: needs mixer 'mine' of a plug-in"
    outcomes = {f"{name}/e": Outcome(FAILED, reason.format(name)) for name in ("a", "b")}
    assert Summary(outcomes).complaints() == ["a, b: needs mixer 'mine' of a plug-in"]


def test_profiles_are_read_without_torch():
    """`mvar status` reads them: each executor loads what makes runs only when it does."""
    code = "import sys, mvar.cluster.profiles as p; print(len(p.PROFILES), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"{len(PROFILES)} False\n"


def test_an_unknown_name_lists_what_is_there(tmp_path, capsys):
    path = tmp_path / "site.toml"
    path.write_text('executor = "slrum"')
    with pytest.raises(
        UserError, match=r"executor: 'slrum' is unknown \(did you mean 'slurm'\?\); allowed: slurm, loc"
    ):
        find("slrum")
    with pytest.raises(UserError, match=r"site.toml: executor: 'slrum' is unknown"):
        load_profile(str(path))
    assert submit(tmp_path / "results", "--cluster", "local", "--cluster-set", "executor=loacl") == USER_ERROR
    assert (
        "executor: 'loacl' is unknown (did you mean 'local'?); allowed: slurm, local, inproc" in capsys.readouterr().err
    )


def test_no_run_falls_through_to_another_executor(tmp_path, monkeypatch, capsys):
    """A profile that was not validated, e.g. put together by a caller."""
    for module in ("runner", "executors.inprocess"):
        monkeypatch.setattr(f"mvar.runs.{module}.run_all", lambda *_: pytest.fail("another executor has the runs"))
    monkeypatch.setitem(PROFILES, "local", PROFILES["local"].model_copy(update={"executor": "nowhere"}))
    assert submit(tmp_path, "--cluster", "local") == USER_ERROR
    assert "executor: 'nowhere' is unknown; allowed: slurm, local, inprocess" in capsys.readouterr().err


def test_one_of_the_users_own_gets_the_runs(tmp_path, capsys):
    EXECUTORS.register("noted", Noted)
    EXECUTORS.register("noted", Noted)  # a file that is loaded twice
    path = tmp_path / "site.toml"
    path.write_text('executor = "noted"\n[env]\nA = "1"\n')
    assert submit(tmp_path / "results", "--cluster", str(path)) == OK
    ((profile, configs),) = Noted.requests
    assert profile.env == {"A": "1"} and len(configs) == 3 == len({config.run_id for config in configs})
    assert "3 of 3 runs done" in capsys.readouterr().out
    path.write_text('executor = "noted"\nworkers = 2\n')
    with pytest.raises(UserError, match="workers: the executor noted does not use it; allowed with it: env"):
        load_profile(str(path))


def test_a_name_has_one_executor():
    class Other(Noted):
        pass

    EXECUTORS.register("noted", Noted)
    for name in ("noted", "local"):
        with pytest.raises(UserError, match=f"executor: '{name}' is taken; allowed: another name than slurm, local"):
            EXECUTORS.register(name, Other)


def test_the_example_is_polite(tmp_path, monkeypatch):
    """Its profile's fields, the lowest priority, and an end as by Ctrl-C after its minutes; a full disk is one line."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setitem(EXECUTORS.owners, "polite", "executor")
    monkeypatch.setenv("TMPDIR", "")
    examples = Path(__file__).parents[2] / "examples"
    plugins.load(str(examples / "executor.py"))
    profile, nice, seen = load_profile(str(examples / "polite.toml")), [], []
    monkeypatch.setattr(os, "nice", nice.append)

    def run_all(configs, store, workers):
        clocks = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        seen.append((list(configs), workers, os.environ["TMPDIR"], clocks))
        return Summary()

    monkeypatch.setattr("mvar.runs.runner.run_all", run_all)
    executor = find("polite")
    executor.execute([(profile, ["a run"])], None)
    ((configs, workers, folder, (clock,)),) = seen
    assert (configs, workers, folder, nice) == (["a run"], 1, "/var/tmp", [19])
    assert (clock.interval, clock.args[1]) == (480 * 60, signal.SIGINT) and clock.finished.is_set()
    with pytest.raises(UserError, match="partition: the executor polite does not use it; allowed with it: env, timeou"):
        load_profile(str(examples / "polite.toml"), ["partition=gpu"])
    executor.check_results(tmp_path / "new")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5e8}))
    with pytest.raises(UserError, match=f"results: 0.5 GB are free at {tmp_path}; allowed: 1 or more"):
        executor.check_results(tmp_path / "new")
