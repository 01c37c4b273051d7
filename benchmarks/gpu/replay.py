"""Replays of CUDA graphs against steps that are run: equal tokens, allocations, seconds a batch."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.settings import PATTERNS, Settings, timed
from mvar.config import RunConfig, SampleConfig
from mvar.sampling import generate
from mvar.sampling.graphs import Graphs, record_cuda
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

OWN_ALLOCATIONS = 16  # of a replayed batch, whatever the model


def models(settings: Settings, name: str) -> tuple[ScaleTransformer, ResidualQuantizer]:
    """A generator with random weights, and the quantizer it draws with, on the device."""
    config = settings.config(name)
    model = random_model(config)
    return model.to(settings.device).eval(), ResidualQuantizer(config.tokenizer).to(settings.device).eval()


def random_model(config: RunConfig) -> ScaleTransformer:
    """A run's generator with random weights, the same each time, on the CPU."""
    torch.manual_seed(0)
    model = ScaleTransformer.empty(config.model, config.token_space, config.runtime)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


def graphs(settings: Settings) -> Graphs:
    """CUDA graphs; without a GPU the same steps run again in their place."""
    return Graphs(record_cuda if settings.device.type == "cuda" else list)


def rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row a model and size of a batch."""
    for name in PATTERNS:
        model, quantizer = models(settings, name)
        sample = settings.config(name).sample
        for size in settings.batches[:2]:
            recorded = graphs(settings)
            wrong = tokens_that_differ(model, quantizer, sample, size, recorded)
            runs = ways(settings, model, quantizer, size, recorded)
            taken = timed(settings, runs)
            made = {f"allocations_{what}": allocations(settings, run) for what, run in runs.items()}
            # a replay has its memory already: what is left are its labels, its numbers and the copies that it returns
            holds = wrong == 0 and (made["allocations_replayed"] or 0) <= OWN_ALLOCATIONS
            row = {"model": name, "batch": size, "tokens_that_differ": wrong, **made, "holds": holds}
            yield row | {f"{what}_s": value for what, value in taken.items()}


def tokens_that_differ(
    model: ScaleTransformer, quantizer: ResidualQuantizer, sample: SampleConfig, size: int, recorded: Graphs
) -> int:
    """Of four batches of which the first is run, the second recorded: from those of the same steps that are run."""
    wrong = 0
    for batch in range(4):
        labels, seeds = (torch.arange(size) + batch) % model.space.num_classes, [(batch, i) for i in range(size)]
        found = generate(model, quantizer, labels, seeds, sample, graphs=recorded).tokens
        wrong += int((found != generate(model, quantizer, labels, seeds, sample).tokens).sum())
    return wrong


def ways(
    settings: Settings, model: ScaleTransformer, quantizer: ResidualQuantizer, size: int, recorded: Graphs
) -> dict[str, Callable[[], None]]:
    """What draws so many images, step by step and by replays."""
    return {
        "eager": partial(draw, settings, model, quantizer, size),
        "replayed": partial(draw, settings, model, quantizer, size, recorded),
    }


def allocations(settings: Settings, run: Callable[[], None]) -> int | None:
    """How many pieces of the device's memory a call takes; None of a CPU, where nobody counts."""
    if settings.device.type != "cuda":
        return None
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    run()
    return torch.cuda.memory_stats()["allocation.all.allocated"] - before


def draw(
    settings: Settings,
    model: ScaleTransformer,
    quantizer: ResidualQuantizer,
    size: int,
    recorded: Graphs | None = None,
) -> None:
    """So many images, up to their latent; the result is not looked at, which would wait for the device."""
    labels = torch.arange(size) % model.space.num_classes  # on the host, as the numbers are that go along
    sample = settings.config("VAR").sample  # of any
    generate(model, quantizer, labels, range(size), sample, check=False, graphs=recorded)
