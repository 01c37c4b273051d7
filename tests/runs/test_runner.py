"""The runner with real worker processes: isolation of failures, dead workers, Ctrl-C, a killed parent."""

import fcntl
import multiprocessing
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import CONFIG, TINY, arguments

from mvar.cli import main
from mvar.commands.run import Run
from mvar.config import RunConfig, RuntimeConfig, override
from mvar.errors import FAILURE, INTERRUPTED, OK, USER_ERROR
from mvar.presets import PRESETS
from mvar.runs.clock import Clock
from mvar.runs.display import Lines, duration
from mvar.runs.pipeline import execute
from mvar.runs.plan import RUN, sampling_flops, tasks_of
from mvar.runs.runner import Summary, _Runner, run_all, task_share, worker_places
from mvar.runs.states import DONE, FAILED, STOPPED
from mvar.runs.store import Store

ROOT = Path(__file__).parents[2]


class Recorder:
    """A display that notes what it is shown, and may do something on the way."""

    def __init__(self, on_advance=lambda task, stage, done, total: None) -> None:
        self.begun: list[str] = []
        self.ended: dict[str, str] = {}
        self.shares: list[float] = []
        self._on_advance = on_advance

    def begin(self, task) -> None:
        self.begun.append(task.name)

    def advance(self, task, stage, done, total) -> None:
        self._on_advance(task, stage, done, total)

    def end(self, task, outcome) -> None:
        self.ended[task.name] = outcome.state

    def overall(self, share, left_s, still_s=0.0) -> None:
        self.shares.append(share)

    def close(self) -> None:
        pass


def test_tasks_are_shared_stages_once_and_longest_run_first(tmp_path):
    configs = [override(CONFIG, {"seed": seed, "model.pattern": p}) for seed in (0, 1) for p in ("global", "mamba")]
    tasks = tasks_of([*configs, *configs], Store(tmp_path))
    assert [task.kind for task in tasks] == ["tokenizer", "extractor", "tokens", "floors"] + [RUN] * 4
    runs = tasks[4:]
    assert [task.flops for task in runs] == sorted((task.flops for task in runs), reverse=True)
    assert {task.config.model.pattern for task in runs[:2]} == {"mamba"}
    assert all(len(task.needs) == 3 for task in runs)


def test_what_is_done_is_no_task(store):
    assert tasks_of([CONFIG], store) == []
    (task,) = tasks_of([CONFIG, override(CONFIG, {"seed": 1})], store)
    assert task.config.seed == 1


def test_a_run_is_trained_by_one_task_and_no_other_waits_for_it_in_a_worker(tmp_path):
    """Several evaluations of a run: the first counts the training, the others come after all trainings."""
    configs = [override(CONFIG, {"seed": seed, "sample.seed": s}) for seed in (0, 1) for s in (0, 1, 2)]
    runs = [task for task in tasks_of(configs, Store(tmp_path)) if task.kind == RUN]
    assert [(task.config.seed, task.config.sample.seed) for task in runs[:2]] == [(0, 0), (1, 0)]
    assert {task.flops for task in runs[2:]} == {float(sampling_flops(CONFIG))} != {runs[0].flops}
    assert task_share(runs[2], "sample", 1, 2) == pytest.approx(0.5) and task_share(runs[2], "evaluate", 0, 3) == 1
    runner = _Runner([replace(task, needs=()) for task in runs], Store(tmp_path), [{}, {}], SimpleNamespace())
    first, other, *_ = runner._waiting
    runner._running[Future()] = (0, first)
    assert {task.run for task in runner._waiting if runner._is_ready(task)} == {other.run} != {first.run}


def test_share_of_a_run():
    (task,) = (task for task in tasks_of([CONFIG], Store("nowhere")) if task.kind == RUN)
    shares = [task_share(task, *at) for at in [("tokens", 1, 2), ("train", 4, 8), ("train", 8, 8), ("sample", 1, 2)]]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] < 1
    assert task_share(task, "sample", 2, 2) == pytest.approx(1) == task_share(task, "evaluate", 0, 3)


def test_places_follow_threads_and_gpus(monkeypatch):
    cpu = RuntimeConfig(device="cpu", threads=2)
    assert [place["OMP_NUM_THREADS"] for place in worker_places(cpu, 3)] == ["2"] * 3
    monkeypatch.setattr("mvar.runs.runner._num_cpus", lambda: 8)
    assert len(worker_places(cpu, None)) == 4
    monkeypatch.setattr("mvar.runs.runner._visible_gpus", lambda: ["4", "7"])
    gpu = RuntimeConfig()
    assert [place["CUDA_VISIBLE_DEVICES"] for place in worker_places(gpu, None)] == ["4", "7"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in worker_places(gpu, 3)] == ["4", "7", "4"]
    assert "CUDA_VISIBLE_DEVICES" not in worker_places(cpu, 1)[0]


def test_estimates_prefer_finished_runs(store):
    clock = Clock(store, threads=1)
    assert clock.estimate(override(CONFIG, {"seed": 1})).source == "finished runs"
    probed = clock.estimate(override(CONFIG, {"model.depth": 1}))
    assert probed.source == "timed steps" and probed.seconds > 0
    big = clock.estimate(PRESETS["imagenet256-d12"])
    assert big.source == "GEMM rate (lower bound)" and big.seconds > 1e6


@pytest.mark.parametrize(
    ("seconds", "text"), [(45.2, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (1e6, "12 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_lines_are_few(capsys):
    (*_, task) = tasks_of([CONFIG], Store("nowhere"))
    lines = Lines([task], sys.stderr)
    lines.begin(task)
    for step in range(1000):
        lines.advance(task, "train", step, 1000)
        lines.overall(step / 1000, 3.0)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_one_failure_leaves_the_others_alone(store):
    """A run that diverges, one whose worker is killed, two that are well: in one process pool."""
    victim = override(CONFIG, {"seed": 1, "train.steps": 400})
    diverging = override(CONFIG, {"seed": 2, "train.base_lr": 1e30})
    well = [override(CONFIG, {"seed": seed}) for seed in (3, 4)]
    before = {p: p.stat().st_mtime_ns for p in store.run(CONFIG.run_id).path.rglob("*") if p.name != ".lock"}

    def kill_the_victim(task, stage, done, total):
        if task.config == victim and stage == "train" and multiprocessing.active_children():
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    display = Recorder(kill_the_victim)
    summary = run_all([CONFIG, victim, diverging, *well], store, 1, display)
    assert not summary.interrupted
    assert set(summary.failures) == {victim.run_id, diverging.run_id}
    assert "killed" in summary.failures[victim.run_id].reason
    assert not summary.failures[victim.run_id].is_user_error
    assert store.run(victim.run_id).state() == store.run(diverging.run_id).state() == FAILED
    assert "\n" not in store.run(diverging.run_id).status()["reason"]
    assert all(store.is_done(config) for config in well)
    assert (summary.num_done, summary.num_runs) == (3, 5)
    assert CONFIG.run_id not in display.begun
    assert before == {p: p.stat().st_mtime_ns for p in store.run(CONFIG.run_id).path.rglob("*") if p.name != ".lock"}
    assert 0 < max(display.shares) <= 1.0 + 1e-9


def test_runs_do_not_wait_for_a_stage_that_failed(tmp_path):
    (tmp_path / "images").mkdir()
    config = override(CONFIG, {"data.name": "imagefolder", "data.root": str(tmp_path / "images")})
    store, display = Store(tmp_path / "results"), Recorder()
    tasks = tasks_of([config, override(config, {"seed": 1})], store)
    with _Runner(tasks, store, worker_places(config.runtime, 1), display) as runner:
        assert not runner.run()
    assert display.begun == [task.name for task in tasks[:2]]  # tokenizer and extractor
    assert set(display.ended.values()) == {"failed", "skipped"}
    failures = Summary(runner.outcomes).failures
    assert len(failures) == 2 and all(outcome.is_user_error for outcome in failures.values())
    assert len(Summary(runner.outcomes).complaints()) == 1  # one reason, one line


def test_exit_codes(store, capsys, monkeypatch):
    """What `mvar run` makes of each way to end; no worker is started."""
    from mvar.runs.workers import Outcome

    def ending(**outcomes: Outcome):
        interrupted = outcomes.pop("interrupted", False)
        summary = Summary(outcomes, 4, 2, interrupted)
        monkeypatch.setattr("mvar.runs.runner.run_all", lambda *_: summary)
        code = main(arguments(store.root))
        return code, capsys.readouterr().err.splitlines()

    assert ending() == (OK, [])
    assert ending(a=Outcome(DONE), b=Outcome(FAILED, "ValueError: x")) == (FAILURE, ["mvar: error: b: ValueError: x"])
    assert ending(a=Outcome(FAILED, "no images", True))[0] == USER_ERROR
    assert ending(a=Outcome(FAILED, "no images", True), b=Outcome(FAILED, "x"))[0] == FAILURE
    one_of_two = {"a/1": Outcome(FAILED, "ValueError: x"), "a/2": Outcome(DONE)}  # evaluations of one run
    assert ending(**one_of_two) == (FAILURE, ["mvar: error: a: ValueError: x"])
    code, lines = ending(a=Outcome(STOPPED), interrupted=True)
    assert code == INTERRUPTED and len(lines) == 1 and "goes on where it was" in lines[0]


def test_sampling_from_a_finished_run(store, tmp_path, capsys):
    out = tmp_path / "grid.png"
    common = [CONFIG.run_id, "--results", str(store.root), "--out", str(out), "--per-class", "2"]
    assert main(["sample", *common, "--classes", "3,1"]) == OK
    assert "rows 3, 1" in capsys.readouterr().out
    first = out.read_bytes()
    assert main(["sample", *common, "--classes", "3,1"]) == OK and out.read_bytes() == first
    assert main(["sample", *common, "--classes", "3,1", "--seed", "1"]) == OK and out.read_bytes() != first
    capsys.readouterr()
    assert main(["sample", *common, "--classes", "ten"]) == USER_ERROR
    assert capsys.readouterr().err == "mvar: error: class: 'ten' is unknown; allowed: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n"
    assert main(["sample", *common, "--set", "cfg=3"]) == USER_ERROR
    assert "'cfg' is unknown" in capsys.readouterr().err


def wait_for(condition, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def members(group: int) -> list[int]:
    """Living processes of a process group (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


LONG = override(CONFIG, {"train.steps": 250, "model.pattern": "intra+mamba"})
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def begin(store: Store, read=lambda: None, **where) -> subprocess.Popen:
    """Start the command in a session of its own; returns once `LONG` is training. `read` takes what it prints."""
    run = store.run(LONG.run_id)
    before = (run.status() or {}).get("updated")
    where = {"stderr": subprocess.PIPE, "text": True} | where
    process = subprocess.Popen(command(store), cwd=ROOT, start_new_session=True, **where)

    def training() -> bool:
        read()
        status = run.path.exists() and run.status()
        at_it = status and (status["state"], status["stage"]) == ("running", "train") and status["updated"] != before
        return bool(at_it and run.metrics.exists() and run.metrics.stat().st_size)

    wait_for(lambda: training() or process.poll() is not None)
    said = process.stderr.read() if process.stderr and process.poll() is not None else ""
    assert process.poll() is None, f"ended before it was training: {said}"
    return process


def command(store: Store) -> list[str]:
    """The command of two runs; the longest, `LONG`, is the first to be made."""
    two = ["--only", "VAR", "--only", "M-VAR"]
    return [sys.executable, "-m", "mvar.cli", *arguments(store.root, *two), "train.steps=250"]


def assert_saved(store: Store, group: int) -> None:
    """No process is left; the run is stopped, with a checkpoint of the step that was reached."""
    wait_for(lambda: not members(group), 30)  # workers notice, save and leave; the interpreter's resource tracker too
    run = store.run(LONG.run_id)
    status = run.status()
    assert (status["state"], status["stage"]) == (STOPPED, "train") and 0 < status["step"] < 240
    assert (run.path / "checkpoints" / f"step_{status['step']:08d}.pt").exists()


def kill(store: Store) -> int:
    """kill -9 of the command, which is not its worker; the group."""
    process = begin(store)
    process.kill()
    process.wait()
    return process.pid


def interrupt(store: Store) -> int:
    """Ctrl-C to its group."""
    process = begin(store)
    os.killpg(process.pid, signal.SIGINT)
    return interrupted(process)


def hang_up(store: Store) -> int:
    """SIGHUP to the group, as often as shell and kernel send it."""
    process = begin(store)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGHUP)
        time.sleep(0.01)
    return interrupted(process)


def interrupted(process: subprocess.Popen) -> int:
    """It ends so, with a line that says how it goes on; its group."""
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert err.splitlines()[-1] == "mvar: error: interrupted; the same command goes on where it was"
    assert "Traceback" not in err and "resource_tracker" not in err
    return process.pid


def close_terminal(store: Store) -> int:
    """A real terminal that goes away; the group."""
    ours, theirs = pty.openpty()

    def read() -> None:  # a terminal that nobody reads blocks the command in the end
        while select.select([ours], [], [], 0)[0]:
            os.read(ours, 4096)

    process = begin(
        store,
        read,
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    os.close(ours)
    assert process.wait(60) == INTERRUPTED
    return process.pid


@pytest.mark.slow
@needs_proc
def test_ended_in_every_way_then_finished(store, made, tmp_path):
    """Each time it goes on, nothing is left of it, nothing is lost; the end is that of an undisturbed run."""
    for end in (kill, interrupt, hang_up, close_terminal):
        assert_saved(store, end(store))

    finished = subprocess.run(command(store), cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == OK, finished.stderr
    assert "2 of 2 runs done" in finished.stdout
    run, once = store.run(LONG.run_id), Store(shutil.copytree(made, tmp_path / "once"))
    assert execute(LONG, once) == DONE
    assert once.run(LONG.run_id).weights.read_bytes() == run.weights.read_bytes()
    metrics = [s.run(LONG.run_id).evaluations()[LONG.evaluation_id]["metrics"] for s in (once, store)]
    assert metrics[0] == metrics[1]


def test_hanging_up_is_ignored_under_nohup_and_never_ends_at_once(tmp_path):
    with _Runner([], Store(tmp_path), worker_places(CONFIG.runtime, 1), Recorder()) as runner:
        previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with runner._signals():
                assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            with runner._signals():
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # the last one may come late
        finally:
            signal.signal(signal.SIGHUP, previous)
        assert runner._board.stopping and runner._interrupts == 0


def test_configs_of_the_command_line_are_those_of_this_file():
    """The slow test waits for a run by its id."""
    settings = tuple(f"{name}={value}" for name, value in TINY.items())
    (request,) = Run(sweeps=("mixers",), preset="smoke", set=(settings,)).requests()
    configs: list[RunConfig] = request.configs()
    assert override(CONFIG, {"model.pattern": "intra+mamba"}).run_id in {config.run_id for config in configs}
