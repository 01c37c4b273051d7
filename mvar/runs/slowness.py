"""Runs that would take far longer than with `global` layers, said before they start: a step of one layer is timed, or
counted where runs are made on GPUs.

FLOPs do not tell: a mixer in plain torch, or one of a user's own, may do few of them slowly.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

import torch

from mvar import cost
from mvar.config import RunConfig
from mvar.errors import warn
from mvar.runs.clock import PROBE_FLOPS
from mvar.runs.display import duration
from mvar.training import launched
from mvar.training.cards import card_of
from mvar.training.distributed import resolve_device
from mvar.transformer import Block

TIMES = 10.0
LEAST_S = 60.0  # shorter trainings are not worth a line, and a moment of a busy machine is no reason for one
BASE = "global"
REPEATS = 2
UNKNOWN = "h100"  # stands for a card that is not in the table


def warn_of_slow_runs(configs: Iterable[RunConfig], threads: int) -> None:
    """Warn of each model whose training takes `TIMES` times as long as with `global` layers and `LEAST_S`.

    On a CPU a layer is timed; on a GPU it is counted (`mvar.training.launched`), for what launches runs takes no memory
    of a GPU that workers need.

    Args:
        configs: of runs that are to be trained.
        threads: of torch in a worker.
    """
    told = set()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for config in configs:
            if config.model in told or set(config.model.layers) == {BASE}:
                continue
            told.add(config.model)
            timed = resolve_device(config.runtime) == "cpu"
            found = step_seconds(config) if timed else counted_step_seconds(config)
            ours, base = (seconds * config.train.steps for seconds in found or (0.0, 0.0))
            if ours >= max(TIMES * base, LEAST_S):
                how = "one layer of each was timed" if timed else "by what one layer of each launches, counted"
                warn(
                    f"{config.run_id}: layers {config.model.pattern} take about {ours / base:.0f} times as long to "
                    f"train as {BASE} ones: about {duration(ours)}, not {duration(base)} ({how})"
                )
    finally:
        torch.set_num_threads(before)


def step_seconds(config: RunConfig) -> tuple[float, float] | None:
    """Seconds of a training step with the run's layers and with `global` ones; None where a layer is too large to try.

    What is beside the layers is taken to be as fast as a `global` layer, FLOP for FLOP.
    """
    images = min(config.train.batch_size, int(PROBE_FLOPS / (3 * max(_flops(config).values()))))
    if not images:
        return None
    return _whole_step(config, config.train.batch_size / images, partial(layer_seconds, config, images=images))


def counted_step_seconds(config: RunConfig) -> tuple[float, float] | None:
    """The same of a run on all GPUs that are seen, at least: backward counts as two forward passes.

    None where a layer cannot be counted, as one that looks at its values, and where layers are compiled.
    """
    runtime, batch = config.runtime, config.train.batch_size
    if runtime.compile:
        return None
    whole = batch // max(1, torch.cuda.device_count()) // runtime.accumulate
    images = max(1, min(whole, runtime.images_at_once or whole))
    card = card_of(torch.cuda.get_device_name()) or UNKNOWN

    def seconds(layer: str) -> float:
        return 3 * launched.layer_seconds(config, layer, images, card)

    with suppress(Exception):  # a mixer of a user's own: the run itself says what is wrong with it
        return _whole_step(config, max(1, whole // images) * runtime.accumulate, seconds)
    return None


def _flops(config: RunConfig) -> dict[str, int]:
    model, span = config.model, config.token_space.schedule.span()
    return {layer: sum(cost.layer_flops(model, span, layer).values()) for layer in {BASE, *model.layers}}


def _whole_step(config: RunConfig, parts: float, seconds: Callable[[str], float]) -> tuple[float, float]:
    model, flops = config.model, _flops(config)
    taken = {layer: seconds(layer) for layer in flops}
    rest = cost.forward_flops(model, config.token_space) - sum(flops[layer] for layer in model.layers)
    beside = taken[BASE] * rest / flops[BASE]
    ours, base = sum(taken[layer] for layer in model.layers), model.depth * taken[BASE]
    return parts * (beside + ours), parts * (beside + base)


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
