"""Runs that one GPU does not hold: how many they are given, what `auto` becomes there, and teams of workers."""

import multiprocessing
import shutil
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import CONFIG

from mvar import layout
from mvar.checkpoints.weights import load_weights
from mvar.cli import main
from mvar.cluster.executor import Slurm
from mvar.cluster.profiles import Profile
from mvar.commands import gpu_table
from mvar.config import override
from mvar.errors import OK, USER_ERROR, UserError
from mvar.presets import IMAGENET_TRAIN_IMAGES, PRESETS
from mvar.runs import at_hand, gpu_plan, runner
from mvar.runs.at_hand import drawn_at_once, gpus_for, settled, shared_out
from mvar.runs.display import Lines
from mvar.runs.gpu_plan import GB, settle
from mvar.runs.gpus import Machine
from mvar.runs.pipeline import execute
from mvar.runs.plan import RUN, tasks_of
from mvar.runs.stage_costs import encoding_flops
from mvar.runs.states import DONE, FAILED
from mvar.runs.store import Store
from mvar.training.counted_scan import scan_of
from mvar.training.footprint import footprint

OPEN = {"runtime.strategy": "auto", "runtime.micro_batch": "auto", "runtime.checkpoint_activations": "auto"}
SMALL = override(PRESETS["smoke"], OPEN | {"model.pattern": "intra+mamba", "model.depth": 4})


def machine(limit_gb: float, gpus: int) -> Machine:
    return Machine(gpus, "h100", limit_gb / 0.95)


def peak(images: int, kept: str, strategy: str, gpus: int) -> float:
    return footprint(SMALL, images, kept, strategy, gpus).peak / GB


def on_gpus(monkeypatch, limit_gb: float, gpus: int) -> None:
    """A process whose team has so many GPUs."""
    monkeypatch.setattr(at_hand, "resolve_device", lambda runtime: "cuda")
    monkeypatch.setattr(at_hand, "current_team", lambda: SimpleNamespace(world=gpus) if gpus > 1 else None)
    monkeypatch.setattr(at_hand, "machine_here", lambda count: machine(limit_gb, count))


def test_auto_is_nothing_special_on_a_cpu_and_no_part_of_ids(capsys):
    config = override(SMALL, {"runtime.device": "cpu"})
    runtime = settled(config)
    assert (runtime.strategy, runtime.micro_batch, runtime.checkpoint_activations) == ("ddp", None, "none")
    assert capsys.readouterr().err == ""
    plain = override(config, {"runtime.strategy": "fsdp", "runtime.micro_batch": "4"})
    assert (config.run_id, config.evaluation_id) == (plain.run_id, plain.evaluation_id)


def test_auto_is_what_the_plan_says_and_is_said_once(monkeypatch, capsys):
    on_gpus(monkeypatch, peak(8, "full", "fsdp", 2) * 1.001, 2)
    runtime = settled(SMALL)
    assert (runtime.strategy, runtime.micro_batch, runtime.checkpoint_activations) == ("fsdp", 8, "full")
    settled(SMALL)
    (line,) = capsys.readouterr().err.splitlines()
    assert "runtime: auto is runtime.strategy=fsdp runtime.checkpoint_activations=full runtime.micro_batch=8: " in line
    assert line.endswith("GB of 2 GPUs by count")


def test_auto_leaves_alone_what_is_set(monkeypatch):
    on_gpus(monkeypatch, 80, 2)
    assert settled(override(SMALL, {"runtime.strategy": "fsdp"})).strategy == "fsdp"
    assert settled(override(SMALL, {"runtime.micro_batch": "4"})).micro_batch == 4
    assert settled(override(SMALL, {"runtime.micro_batch": "null", "runtime.accumulate": "4"})).micro_batch == 4
    assert settled(override(SMALL, {"runtime.checkpoint_activations": "full"})).checkpoint_activations == "full"
    means = override(SMALL, {"train.ema": [100]})
    on_gpus(monkeypatch, footprint(means, 1, "full", "ddp", 2).peak / GB * 1.001, 2)
    assert settled(means).strategy == "ddp"  # running means are of whole weights
    on_gpus(monkeypatch, peak(1, "full", "ddp", 2) * 0.99, 2)
    assert settled(SMALL).strategy == "fsdp"
    with pytest.raises(UserError, match=r"does not fit 2 GPUs of 0 GB: 0\.0 GB a GPU at least, limit 0\.0; .*would do"):
        settled(means)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.ema": [100]},
        {"runtime.strategy": "fsdp"},
        {"runtime.strategy": "ddp"},
        {"runtime.micro_batch": "4"},
        {"runtime.micro_batch": "null", "runtime.accumulate": "2"},
        {"runtime.checkpoint_activations": "selective"},
    ],
)
def test_the_plan_says_what_the_run_does(monkeypatch, store, changes):
    """Where much fits, where weights have to be shared, and where nothing does: the same setting, or none."""
    config, outcomes = override(SMALL, changes), []
    asked = SimpleNamespace(configs=lambda: [config])
    monkeypatch.setattr(gpu_table, "drawing", lambda config, images: 0)
    for limit in (80, peak(1, "full", "ddp", 2) * 0.99, 1e-9):
        on_gpus(monkeypatch, limit, 2)
        (planned,) = gpu_table.runs_on([asked], store, machine(limit, 2), gpu_table.Share(0.4, "so"))
        try:
            done = settled(config)
        except UserError:
            done = None
        outcomes.append(planned.setting is not None)
        assert (planned.setting is None) == (done is None) and planned.scan == scan_of(config)
        if planned.setting and done:
            size = done.micro_batch or config.train.batch_size // 2 // done.accumulate
            ran = (done.strategy, done.checkpoint_activations, size)
            assert (planned.setting.strategy, planned.setting.kept, planned.setting.micro_batch) == ran
    assert outcomes[0] and not outcomes[2]


def test_images_are_drawn_as_many_at_once_as_fit(monkeypatch, capsys):
    """Where `runtime.sample_batch` is auto; a number stays, and on a CPU it is the official code's."""
    config = override(SMALL, {"runtime.sample_batch": "auto"})
    for module in (at_hand, gpu_plan):
        monkeypatch.setattr(module, "drawing", lambda config, images: (2 + images) * GB)
    assert config.evaluation_id == SMALL.evaluation_id
    assert drawn_at_once(override(config, {"runtime.device": "cpu"})) == 50 and drawn_at_once(SMALL) == 100
    monkeypatch.setattr(at_hand, "resolve_device", lambda runtime: "cuda")
    monkeypatch.setattr(at_hand, "machine_here", lambda count: machine(9.5, count))
    assert drawn_at_once(config) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("runtime.sample_batch: auto is 7: 9.0 of 10.0 GB of a GPU by count")
    monkeypatch.setattr(at_hand, "machine_here", lambda count: machine(1e-9, count))
    with pytest.raises(UserError, match=r"sample_batch: 1 image at once: .* GB, limit 0\.0; allowed: larger GPUs"):
        drawn_at_once(config)


def test_a_run_is_given_as_few_gpus_as_it_fits_on(capsys):
    def given(limit_gb: float, gpus: int, counts=None) -> int:
        return gpus_for(SMALL, machine(limit_gb, gpus), counts)

    assert given(peak(8, "full", "ddp", 1) * 1.001, 8) == 1
    assert given(peak(8, "full", "fsdp", 2) * 1.001, 8) == 2
    assert given(peak(8, "full", "fsdp", 4) * 1.001, 8) == 4
    assert given(peak(8, "full", "fsdp", 2) * 1.001, 8, (1, 4, 8)) == 4
    assert given(peak(8, "full", "fsdp", 2) * 1.001, 3) == 2  # 32 images do not divide into three
    assert (
        gpus_for(override(SMALL, {n: v for n, v in vars(PRESETS["smoke"].runtime).items() if 0}), machine(80, 2)) == 1
    )
    with pytest.raises(UserError, match=r"runtime: intra\+mamba does not fit 2 GPUs of 0 GB: .*; 8 such GPUs would do"):
        given(peak(1, "full", "fsdp", 8) * 1.001, 2)
    with pytest.raises(UserError, match="no number of such GPUs would do"):
        given(1e-9, 2)


def test_no_gpu_is_idle_where_a_run_could_use_it():
    """A lone run has all that divide its batch into eight images or more; several share them, and none waits."""

    def given(gpus: int, *changes: dict) -> list[int]:
        runs = [override(SMALL, change) for change in changes]
        return shared_out(runs, machine(80, gpus))

    assert given(4, {}) == [4] and given(3, {}) == [2]  # 32 images do not divide into three
    assert given(8, {}) == [4] and given(32, {"train.batch_size": 256}) == [32]
    assert given(4, {}, {"seed": 1}) == [2, 2] and given(2, {}, {"seed": 1}, {"seed": 2}) == [1, 1, 1]
    plain = dict.fromkeys(("runtime.strategy", "runtime.checkpoint_activations"), "none") | {"runtime.strategy": "ddp"}
    assert given(4, plain | {"runtime.micro_batch": "null"}) == [1]  # leaves nothing open
    sharded = plain | {"runtime.strategy": "fsdp", "runtime.micro_batch": "null"}
    assert given(4, sharded) == [4] and given(4, sharded | {"train.ema": [100]}) == [1]  # means are of whole weights
    assert given(8, {"runtime.micro_batch": "16"}, {}) == [2, 4]
    large, light = override(SMALL, {"train.batch_size": 48}), override(SMALL, {"model.pattern": "global"})
    tight = machine(footprint(large, 8, "full", "fsdp", 6).peak / GB * 1.001, 8)
    assert shared_out([light], tight) == [4] and shared_out([large, light], tight) == [6, 1]  # 4 would have to wait
    assert shared_out([], machine(80, 4)) == []


def test_too_little_memory_and_processes_that_do_not_divide_are_a_line_each(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "machine_here", lambda count: machine(1e-6, count))
    monkeypatch.setattr(runner, "worker_places", lambda runtime, count: [{runner.GPU: "0", "OMP_NUM_THREADS": "1"}])
    words = ["run", "mixers", "--preset", "smoke", "--only", "VAR", "--results", str(tmp_path), "--set"]
    assert main([*words, *(f"{name}={value}" for name, value in OPEN.items())]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mvar: error: runtime: global does not fit 1 GPU of 0 GB: ") and "such GPUs would do" in line
    assert not (tmp_path / "runs").exists()
    on_gpus(monkeypatch, 80, 3)
    with pytest.raises(UserError, match="batch_size: 32 does not divide into 3 processes x accumulate 1; allowed"):
        settled(SMALL)
    on_gpus(monkeypatch, 80, 4)
    large = override(SMALL, {"runtime.micro_batch": "16"})
    for call in (settled, lambda config: settle(config, machine(80, 4))):  # the run, and the plan
        with pytest.raises(UserError, match="micro_batch: 16 images in 4 processes do not divide batch_size 32; allow"):
            call(large)


def test_on_gpus_a_training_takes_several_workers_and_what_is_trained_one(monkeypatch, store):
    monkeypatch.setattr(runner, "machine_here", lambda count: machine(80, count))
    monkeypatch.setattr(at_hand, "gpus_for", lambda config, machine: machine.gpus)
    tasks = tasks_of([override(CONFIG, {"seed": 1}), override(CONFIG, {"sample.seed": 5})], store)
    places = [{runner.GPU: gpu} for gpu in ("3", "4", "3")]
    trained = {task.config.seed: runner.gpus_of(tasks, places)[task.key] for task in tasks if task.kind == RUN}
    assert trained == {1: 2, 0: 1}
    assert set(runner.gpus_of(tasks, [{}, {}]).values()) == {1}


def test_on_gpus_many_tokens_are_written_by_all_workers(monkeypatch, tmp_path):
    """Few are not worth the start of a team; what else is shared is one worker's."""
    monkeypatch.setattr(runner, "machine_here", lambda count: machine(80, count))
    tasks = tasks_of([CONFIG], Store(tmp_path))
    places = [{runner.GPU: gpu} for gpu in ("3", "4", "3")]
    (tokens,) = (task for task in tasks if task.kind == "tokens")
    assert runner.gpus_of(tasks, places)[tokens.key] == 1
    monkeypatch.setattr(runner, "WORTH_A_TEAM", tokens.flops)
    assert {task.kind: runner.gpus_of(tasks, places)[task.key] for task in tasks if task.kind != RUN} == {
        **{"tokenizer": 1, "extractor": 1, "floors": 1},
        "tokens": 2,
    }
    imagenet = PRESETS["imagenet256-d16"]
    assert encoding_flops(imagenet) * IMAGENET_TRAIN_IMAGES > 1e15 > tokens.flops > 0


def test_the_workers_of_a_team_see_the_gpus_of_all_of_them(monkeypatch, store):
    """And they are new ones: a worker that has seen its own GPU alone cannot see another."""
    made, sent = [], []

    class Pool:
        _processes = None

        def __init__(self, count, context, initializer, initargs):
            made.append(self)
            self.number, self.seen = initargs[1], initargs[3].get(runner.GPU)

        def submit(self, call, *arguments):
            sent.append((self.seen, call.__name__, arguments[:2]))
            return Future()

        def shutdown(self):
            pass

    monkeypatch.setattr(runner, "ProcessPoolExecutor", Pool)
    tasks = tasks_of([override(CONFIG, {"seed": seed}) for seed in (1, 2)], store)
    places = [{runner.GPU: gpu, "OMP_NUM_THREADS": "1"} for gpu in "347"]
    found = runner._Runner(tasks, store, places, SimpleNamespace(begin=lambda task: None), {tasks[0].key: 2})
    for number in range(3):
        found._pool(number)
    found._dispatch()
    assert sent == [("3,4", "work_together", (0, 2)), ("3,4", "work_together", (1, 2)), ("7", "work", sent[2][2])]
    assert [(pool.number, pool.seen) for pool in made] == [(0, "3"), (1, "4"), (2, "7"), (0, "3,4"), (1, "3,4")]


class Killing(Lines):
    """Kills one of the workers, once, as soon as they train together."""

    done = False

    def advance(self, task, stage, done, total):
        if stage == "train" and not self.done:
            self.done = True
            multiprocessing.active_children()[-1].kill()


@pytest.mark.slow
def test_workers_of_a_team_train_a_run_together(tmp_path, monkeypatch, store):
    """Two on the CPU: one that is killed ends its team; then the weights are those of one process up to rounding."""
    config = override(CONFIG, {"seed": 1, "train.steps": 9, "runtime.device": "cpu", "runtime.threads": 1})
    shutil.copytree(store.root / "stages", tmp_path / "alone" / "stages")
    assert execute(config, Store(tmp_path / "alone")) == DONE
    monkeypatch.setattr(runner, "gpus_of", lambda tasks, places: {t.key: 2 if t.kind == RUN else 1 for t in tasks})
    run = store.run_of(config)
    summary = runner.run_all([config], store, 2, Killing(tasks_of([config], store), sys.stdout))
    (failed,) = summary.failures.values()
    assert "killed" in failed.reason and run.state() == FAILED and not multiprocessing.active_children()
    summary = runner.run_all([config], store, num_workers=2)
    assert (summary.num_done, summary.failures) == (1, {})
    assert [way["processes"] for way in run.execution()] == [2]
    alone = load_weights(Store(tmp_path / "alone").run_of(config).weights)[0]
    for name, value in load_weights(run.weights)[0].items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_workers_of_a_team_write_tokens_together(tmp_path, store):
    """Two on the CPU: the bytes are those of one process."""
    config = override(CONFIG, {"runtime.device": "cpu", "runtime.threads": 1})
    name = f"tokens-{config.tokens_id}"
    shutil.copytree(store.root / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns(name))
    together = Store(tmp_path)
    (task,) = (task for task in tasks_of([config], together) if task.kind == "tokens")
    places = runner.worker_places(config.runtime, 2)
    with runner._Runner([task], together, places, Lines([task], sys.stdout), {task.key: 2}) as found:
        assert not found.run() and found.outcomes[task.key].state == DONE
    for split in ("train", "heldout"):
        parts = (Path(root.root / "stages" / name / split / layout.TOKENS).read_bytes() for root in (store, together))
        assert len(set(parts)) == 1


def test_a_profile_gives_a_run_as_many_gpus_and_nodes_as_planned():
    """Few of one node, or whole nodes, and of memory its part; a run that leaves nothing open gets all."""
    values = {"nodes": 4, "gpus_per_node": 2, "gpu": "h100-80gb", "gpus": "planned", "mem_gb": 100.0}
    profile = Profile.model_validate(values)

    def given(limit_gb: float) -> tuple:
        sized = type("P", (Profile,), {"machine": lambda self: machine(limit_gb, 8)}).model_validate(values)
        found = sized.for_run(SMALL)
        return found.nodes, found.gpus_per_node, found.mem_gb

    assert given(80) == (1, 1, 50)
    assert given(peak(8, "full", "fsdp", 2) * 1.001) == (1, 2, 100)
    assert given(peak(8, "full", "fsdp", 4) * 1.001) == (2, 2, 100)
    with pytest.raises(UserError, match="does not fit 8 GPUs"):
        given(1e-9)
    assert profile.for_run(override(PRESETS["smoke"], {"runtime.strategy": "fsdp"})).gpus_per_node == 1
    assert profile.for_run(PRESETS["smoke"]) is profile and profile.machine() == Machine(8, "h100", 80)
    for wrong in ({"gpu": "h100"}, {"gpu": "h1-80gb"}, {"gpu": None}, {"gpus_per_node": 0}, {"tasks_per_node": 1}):
        with pytest.raises(ValueError, match="gpu"):
            Profile.model_validate(values | wrong)


def test_runs_of_one_submission_are_sent_by_their_size(monkeypatch, tmp_path):
    sent = []
    monkeypatch.setattr(Profile, "for_run", lambda self, config: self.model_copy(update={"nodes": 1 + config.seed}))
    monkeypatch.setattr(Slurm, "execute", lambda self, requests, store, dry_run: sent.extend(requests))
    words = ["submit", "layers", "--preset", "smoke", "--seeds", "2", "--cluster", "slurm", "--dry-run"]
    assert main([*words, "--results", str(tmp_path)]) == OK
    assert [profile.nodes for profile, _ in sent] == [1, 2]
    assert [{config.seed for config in configs} for _, configs in sent] == [{0}, {1}]
