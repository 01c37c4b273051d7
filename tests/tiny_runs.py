"""The smallest runs that have every part: seconds each, shared stages included."""

from pathlib import Path

from mvar.config import RunConfig, override
from mvar.presets import PRESETS
from mvar.runs.pipeline import execute
from mvar.runs.states import STOPPED
from mvar.runs.store import Store

TINY = {
    "tokenizer.train.steps": 6,
    "tokenizer.width": 8,
    "tokenizer.vocab_size": 16,
    "model.depth": 2,
    "model.width": 16,
    "model.mamba.headdim": 16,
    "train.steps": 8,
    "train.batch_size": 8,
    "evaluation.num_images": 40,
    "evaluation.classifier_steps": 6,
    "evaluation.kid_subset_size": 10,
    "runtime.checkpoint_every": 4,
    "runtime.log_every": 2,
}
CONFIG = override(PRESETS["smoke"], TINY)


def arguments(root: Path, *more: str) -> list[str]:
    """The command line that makes `CONFIG` and its sweep."""
    settings = [f"{name}={value}" for name, value in TINY.items()]
    return ["run", "mixers", "--preset", "smoke", "--results", str(root), "--workers", "1", *more, "--set", *settings]


def files_of(store: Store, config: RunConfig) -> dict[Path, int]:
    """When each file of a run was last written."""
    paths = store.run(config.run_id).path.rglob("*")
    return {path: path.stat().st_mtime_ns for path in paths if path.name != ".lock"}


def interrupt(config: RunConfig, store: Store, step: int) -> list[Path]:
    """Train a run up to a step; its checkpoints, the oldest first."""
    reached = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "train" and done >= step:
            reached.append(done)

    assert execute(config, store, progress, lambda: bool(reached)) == STOPPED
    return sorted((store.run(config.run_id).path / "checkpoints").glob("step_*.pt"))
