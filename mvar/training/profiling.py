"""Where the time of a training step goes: by part of the model and of the step, and as a trace."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch._C._autograd import DeviceType  # torch.autograd has it too, and does not export it
from torch.profiler import ProfilerActivity, profile, record_function

from mvar.config import RunConfig
from mvar.tokenizer.model import Tokenizer
from mvar.training.cards import rate_of
from mvar.training.distributed import resolve_device
from mvar.training.generator import GeneratorObjective
from mvar.training.loop import fit
from mvar.training.throughput import throughput
from mvar.transformer import ScaleTransformer

PREFIX = "mvar::"  # of a part's range, as in a trace
BACKWARD = "autograd::engine::evaluate_function"
OTHER = "other"
NAMES = {"attn": "attention", "mamba": "scan", "gla": "scan", "gdn": "scan"}  # of mixers, by key; others by their own
IMAGES = 64  # of random tokens


@dataclass(frozen=True)
class Profile:
    """One step, the mean of several."""

    parts: dict[str, float]  # ms of each, the largest first; of the device where that is a GPU, else of the processor
    step_ms: float
    throughput: dict[str, float]  # as in `metrics.jsonl`


@dataclass
class _RandomTokens:
    """In place of a token cache."""

    labels: np.ndarray
    tokens: np.ndarray


def profiled(config: RunConfig, steps: int, trace: Path) -> Profile:
    """Profile training steps of a run's generator on random tokens, through the training loop itself.

    Args:
        config: the run; its device, precision and batch. Nothing of its `runtime` is `auto`.
        steps: that are measured, after two that are not.
        trace: where the trace is written, for chrome://tracing or Perfetto.

    Raises:
        UserError: a device that is not there, a batch that does not divide.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of its start, and of GPUs that are not there
    device = torch.device(resolve_device(config.runtime))
    model, objective = random_objective(config, steps + 3)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    schedule = torch.profiler.schedule(wait=1, warmup=1, active=steps, repeat=1)
    found: list[Any] = []

    def keep(measured: Any) -> None:
        measured.export_chrome_trace(str(trace))
        # a GPU's own are in these, with who queued them
        found.extend(event for event in measured.events() if event.device_type == DeviceType.CPU)

    def progress(done: int, of: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # else a step would end where its last part is queued
        profiler.step()

    with (
        tempfile.TemporaryDirectory() as folder,
        _ranges(model),
        profile(activities=activities, schedule=schedule, on_trace_ready=keep, acc_events=True) as profiler,
    ):
        runtime = config.runtime.model_copy(update={"log_every": steps + 3, "checkpoint_every": steps + 3})
        fit(objective, objective.train, folder, runtime, seed=0, progress=progress)
    parts = _by_part(found, steps, device.type == "cuda")
    step_ms = sum(e.time_range.elapsed_us() for e in found if e.name.startswith("ProfilerStep")) / steps / 1e3
    rate = rate_of(device, config.train.precision, runtime.tf32)
    speed = throughput(objective, step_ms / 1e3, device, rate, 1)
    return Profile(parts, step_ms, speed)


def random_objective(config: RunConfig, steps: int) -> tuple[ScaleTransformer, GeneratorObjective]:
    """A run's generator before its first step, to be trained so many of them on random tokens, the same each time."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(config.tokenizer, config.data.channels)
    model = ScaleTransformer(config.model, config.token_space, config.runtime)
    rng, space = np.random.default_rng(0), config.token_space
    labels = rng.integers(space.num_classes, size=IMAGES)
    tokens = rng.integers(space.vocab_size, size=(IMAGES, space.schedule.num_tokens))
    train = config.train.model_copy(update={"steps": steps, "ema": (), "init_from": None})
    cache = cast("Any", _RandomTokens(labels, tokens))
    return model, GeneratorObjective(model, tokenizer.quantize, cache, train, 0)


@contextmanager
def _ranges(model: ScaleTransformer) -> Iterator[None]:
    """While each part of the model marks its own time."""
    handles: list[Any] = []
    handles += _marked(model, "embeddings")
    for block in model.each_block():
        handles += _marked(block, "norms and gates")
        handles += _marked(block.ffn, "mlp")
        for mixer in block.mixers():
            handles += _marked(mixer, NAMES.get(mixer.key, mixer.key))
    for module in (model.head_nm, model.head):
        handles += _marked(module, "head")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _marked(module: nn.Module, part: str) -> list[Any]:
    """Hooks by which a module's forward pass is a range of the trace."""
    open_ranges: list[Any] = []

    def begin(*_: Any) -> None:
        open_ranges.append(record_function(PREFIX + part))
        open_ranges[-1].__enter__()

    def end(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]


def _by_part(events: list[Any], steps: int, on_device: bool) -> dict[str, float]:
    """Milliseconds a step of each part, those of its backward pass included."""
    parts = {event.sequence_nr: part for event in events if event.sequence_nr >= 0 and (part := _range_of(event))}
    total: defaultdict[str, float] = defaultdict(float)
    for event in events:
        spent = event.self_device_time_total if on_device else event.self_cpu_time_total
        if not event.name.startswith("ProfilerStep"):
            total[_range_of(event) or _forward_of(event, parts) or OTHER] += spent / steps / 1e3
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _up(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _range_of(event: Any) -> str | None:
    """The innermost range around an operator."""
    return next((e.name.removeprefix(PREFIX) for e in _up(event) if e.name.startswith(PREFIX)), None)


def _forward_of(event: Any, parts: dict[int, str]) -> str | None:
    """The part whose backward pass an operator belongs to."""
    return next((parts.get(e.sequence_nr) for e in _up(event) if e.name.startswith(BACKWARD)), None)
