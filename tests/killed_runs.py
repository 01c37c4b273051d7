"""Small runs with more than one kind of mixer, killed where one likes, and all that a results directory ends with."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import tiny_runs

from mvar.config import RunConfig, override
from mvar.presets import PRESETS
from mvar.runs.pipeline import execute
from mvar.runs.store import Store

TINY = tiny_runs.TINY | {
    "tokenizer.train.steps": 8,
    "model.num_heads": 2,
    "model.pattern": "intra+mamba global",
    "train.steps": 9,
    "evaluation.classifier_steps": 8,
    "runtime.sample_batch": 10,
}
CONFIG = override(PRESETS["smoke"], TINY)


def kill_at(stage: str, step: int):
    """A progress callback that kills its own process, as `kill -9` does, once `step` of `stage` is reached."""

    def progress(name: str, done: int, total: int) -> None:
        if name == stage and done >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def in_process(config: RunConfig, root: Path, progress=None) -> multiprocessing.Process:
    """`execute` in a process of its own; forked, which spares importing torch again."""
    process = multiprocessing.get_context("fork").Process(target=execute, args=(config, Store(root), progress))
    process.start()
    return process


def without_times(value):
    """JSON values without what depends on the clock."""
    if isinstance(value, dict):
        times = ("timing", "train_s", "updated")
        clock = {k for k in value if k in times or k.endswith(("_s", "_ms", "_per_s"))}
        return {k: without_times(v) for k, v in value.items() if k not in clock}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def outcome(root: Path) -> dict[str, object]:
    """All that a results directory ends up with, times aside."""
    found: dict[str, object] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = str(path.relative_to(root))
        if name.endswith(".lock") or "/checkpoints/" in name or path.name in ("env.json", "timing.json"):
            continue
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            found[name] = path.read_bytes()
    return found
