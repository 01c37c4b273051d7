"""A training step: its share of the card's rate (MFU), and its peak of memory against the plan's, by what layers keep.

A peak holds where it is not more above the plan's than the plan leaves free of a card's memory. Steps whose weights are
sharded need two GPUs; without a GPU two processes go through them all the same.
"""

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, get_args

import torch
import torch.nn.functional as F

from benchmarks.gpu.replay import random_model
from benchmarks.gpu.settings import HALF, PATTERNS, Settings, timed, wait
from mvar.config import RunConfig, override
from mvar.cost import train_flops
from mvar.kernels.recompute import Kept
from mvar.runs.clock import gemm_rate_of
from mvar.runs.gpu_plan import GB
from mvar.runs.gpus import USABLE
from mvar.training.cards import rate_of
from mvar.training.footprint import footprint
from mvar.training.loop import fit
from mvar.training.profiling import random_objective
from mvar.training.strategies import share_out
from mvar.transformer import ScaleTransformer

KEPT: tuple[Kept, ...] = get_args(Kept)
WARM, FAR = 2, 10**6  # steps that are not measured; steps that no training here reaches
SHARDED: tuple[Kept, ...] = ("none", "full")


class Step:
    """One training step after another: logits, loss, gradients, clipping, fused AdamW."""

    def __init__(self, model: ScaleTransformer, config: RunConfig, batch: int, device: torch.device) -> None:
        self.model, self.device = model.train(), device
        self.half = HALF.get(config.train.precision)
        space, schedule = config.token_space, config.token_space.schedule
        shape = batch, schedule.num_tokens - schedule.lengths[0], space.code_channels
        self.labels = torch.arange(batch, device=device) % space.num_classes
        self.inputs = torch.randn(shape, device=device)
        self.tokens = torch.randint(space.vocab_size, (batch, schedule.num_tokens), device=device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)

    def __call__(self) -> None:
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            logits, _ = self.model(self.labels, self.inputs)
            F.cross_entropy(logits.flatten(0, 1), self.tokens.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row a model and what its layers keep, and one of compiled layers, all of the training loop itself.

    What a CPU cannot tell, a peak of memory and a card's rate, is None; it does not compile either.
    """
    for name in PATTERNS:
        for kept in KEPT:
            config = settings.config(name, kept)
            taken, peak = looped(settings, config)
            row = planned(settings, name, kept, 1, peak) | rate_a_second(settings, taken)
            yield row | (speed(settings, config, taken) if kept == "none" else {})
        config = override(settings.config(name), {"runtime.compile": True})
        stance = "default" if settings.device.type == "cuda" else "force_eager"
        with torch.compiler.set_stance(stance):
            taken, _ = looped(settings, config)
        row = {"model": name, "strategy": "ddp", "keeps": "none", "compiled": True, "batch": size_of(settings)}
        yield row | rate_a_second(settings, taken) | speed(settings, config, taken)


class _EnoughSteps(Exception):
    """In place of the last one, which would write a checkpoint."""


def looped(settings: Settings, config: RunConfig) -> tuple[float, float | None]:
    """Seconds of a step as `mvar run` makes it, on random tokens, and the most GB that it holds."""
    fields = {"train.batch_size": size_of(settings), "runtime.strategy": "ddp", "runtime.micro_batch": None}
    config = override(config, fields | {"runtime.log_every": FAR, "runtime.checkpoint_every": FAR})
    steps, times = WARM + settings.repeats, list[float]()

    def progress(done: int, of: int) -> None:
        if done in (WARM, steps):  # between these the host queues ahead of the device, as in a run
            wait(settings.device)
            times.append(time.perf_counter())
        if done == WARM and settings.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if done == steps:
            raise _EnoughSteps

    objective = random_objective(config, steps + 1)[1]
    with tempfile.TemporaryDirectory() as folder, suppress(_EnoughSteps):
        fit(objective, objective.train, folder, config.runtime, seed=0, progress=progress)
    peak = torch.cuda.max_memory_allocated() / GB if settings.device.type == "cuda" else None
    del objective
    gc.collect()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
    return (times[1] - times[0]) / settings.repeats, peak


def rate_a_second(settings: Settings, taken: float, processes: int = 1) -> dict[str, Any]:
    """Seconds of a step, and images a second."""
    return {"step_s": taken, "images_per_s": size_of(settings) * processes / taken}


def size_of(settings: Settings) -> int:
    """Images of a step."""
    return 2 if settings.tiny else settings.train_batch


def measured(settings: Settings, name: str, kept: Kept, step: Step, processes: int) -> dict[str, Any]:
    """Seconds of a step, and its peak of memory on this device beside the plan's."""
    on_gpu = settings.device.type == "cuda"
    if on_gpu:
        step()
        gc.collect()  # sharded models hold themselves: the one before this would count
        torch.cuda.reset_peak_memory_stats()
    taken = timed(settings, {"step": step})["step"]
    peak = torch.cuda.max_memory_allocated() / GB if on_gpu else None
    return planned(settings, name, kept, processes, peak) | rate_a_second(settings, taken, processes)


def planned(settings: Settings, name: str, kept: Kept, processes: int, peak_gb: float | None = None) -> dict[str, Any]:
    """What the plan says of a step's memory on each device, beside what was measured; None: it was not."""
    size, strategy = size_of(settings), "fsdp" if processes > 1 else "ddp"
    plan = footprint(settings.config(name, kept), size, kept, strategy, processes).peak / GB
    row: dict[str, Any] = {"model": name, "strategy": strategy, "keeps": kept, "batch": size, "planned_gb": plan}
    row |= {"peak_gb": peak_gb, "peak_over_plan": peak_gb and peak_gb / plan}
    return row | ({} if peak_gb is None else {"holds": peak_gb <= plan / USABLE})


def speed(settings: Settings, config: RunConfig, taken: float) -> dict[str, Any]:
    """What share of the card's rate a step of so many seconds reaches, and of a large product's."""
    flops = train_flops(config.model, config.token_space, size_of(settings)) / taken
    rate = rate_of(settings.device, config.train.precision, config.runtime.tf32)
    product = gemm_rate_of(config, config.train.precision)
    return {"mfu": rate and flops / rate, "of_a_large_product": flops / product}


def sharded(settings: Settings, processes: int) -> Iterator[dict[str, Any]]:
    """A row a model and what its layers keep, of a step whose weights these processes share; each calls it."""
    for name in PATTERNS:
        for kept in SHARDED:
            config = settings.config(name, kept)
            model = random_model(config)
            share_out(model, list(model.each_block()), settings.device.type, processes)
            yield measured(settings, name, kept, Step(model, config, size_of(settings), settings.device), processes)


def not_sharded(settings: Settings) -> Iterator[dict[str, Any]]:
    """The same rows where there is one GPU: what the plan says alone."""
    return (planned(settings, name, kept, 2) for name in PATTERNS for kept in SHARDED)
