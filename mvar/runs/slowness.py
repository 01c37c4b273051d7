"""Runs that would take far longer than with `global` layers, said before they start: a step of one layer is timed.

FLOPs do not tell: a mixer in plain torch, or one of a user's own, may do few of them slowly.
"""

import time
from collections.abc import Iterable

import torch

from mvar import cost
from mvar.config import RunConfig
from mvar.errors import warn
from mvar.runs.clock import PROBE_FLOPS
from mvar.runs.display import duration
from mvar.training.distributed import resolve_device
from mvar.transformer import Block

TIMES = 10.0
LEAST_S = 60.0  # shorter trainings are not worth a line, and a moment of a busy machine is no reason for one
BASE = "global"
REPEATS = 2


def warn_of_slow_runs(configs: Iterable[RunConfig], threads: int) -> None:
    """Warn of each model whose training takes `TIMES` times as long as with `global` layers and `LEAST_S`, on a CPU.

    Args:
        configs: of runs that are to be trained.
        threads: of torch in a worker.
    """
    told = set()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for config in configs:
            if config.model in told or resolve_device(config.runtime) != "cpu":
                continue
            told.add(config.model)
            found = step_seconds(config)
            ours, base = (seconds * config.train.steps for seconds in found or (0.0, 0.0))
            if ours >= max(TIMES * base, LEAST_S):
                warn(
                    f"{config.run_id}: layers {config.model.pattern} take about {ours / base:.0f} times as long to "
                    f"train as {BASE} ones: about {duration(ours)}, not {duration(base)} (one layer of each was timed)"
                )
    finally:
        torch.set_num_threads(before)


def step_seconds(config: RunConfig) -> tuple[float, float] | None:
    """Seconds of a training step with the run's layers and with `global` ones; None where a layer is too large to try.

    What is beside the layers is taken to be as fast as a `global` layer, FLOP for FLOP.
    """
    model, span = config.model, config.token_space.schedule.span()
    flops = {layer: sum(cost.layer_flops(model, span, layer).values()) for layer in {BASE, *model.layers}}
    images = min(config.train.batch_size, int(PROBE_FLOPS / (3 * max(flops.values()))))
    if not images or set(model.layers) == {BASE}:
        return None
    taken = {layer: layer_seconds(config, layer, images) for layer in flops}
    rest = cost.forward_flops(model, config.token_space) - sum(flops[layer] for layer in model.layers)
    beside = taken[BASE] * rest / flops[BASE]
    steps = config.train.batch_size / images
    ours, base = sum(taken[layer] for layer in model.layers), model.depth * taken[BASE]
    return steps * (beside + ours), steps * (beside + base)


def layer_seconds(config: RunConfig, layer: str, images: int) -> float:
    """Of a forward and a backward pass of one layer over some images, random tokens, the better of `REPEATS`."""
    span, width = config.token_space.schedule.span(), config.model.width
    with torch.random.fork_rng(devices=[]):
        block = Block(config.model, layer, 0.0, config.runtime)
        x = torch.randn(images, span.length, width, requires_grad=True)
        chunks = (1, 3 * block.num_branches, width) if config.model.shared_adaln else (width,)
        condition = torch.randn(images, *chunks)
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        block(x, condition, span, None)[0].square().mean().backward()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
