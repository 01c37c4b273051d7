"""Time and memory in which whole models of `inter_scale` draw one image, as it grows from 30 to 2,240 tokens.

Run: `python -m benchmarks.lengths --threads 1`. All models are measured in turn within each of some processes.
`--processor-time` beside other work.

- ms: one image, class given, no guidance, no filter: the generator scale by scale with its state, the draws, and the
  sum of the codes that the next scale is made of; decoding is left out, which is the same for all. Weights are random:
  what is drawn takes no part in the time.
- crossing: from which L on a model takes less than `intra+global` at every L that was measured, of time beyond what
  processes scatter by.

What exactly is stored stands in `benchmarks.by_length`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import by_length
from benchmarks.machine import begin, clock_of, describe_machine, settings_json, take_threads
from mvar.config import RunConfig, SampleConfig, override
from mvar.errors import UserError, one_of
from mvar.files import write_json
from mvar.mixers.base import inter_scale_mixers
from mvar.presets import PRESETS
from mvar.sampling import generate
from mvar.scales import PATCH_SIDES
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

DENSE = "intra+global"
SIDES = PATCH_SIDES["512"]  # its first scales are whole schedules too


@dataclass
class Settings:
    """What is measured."""

    preset: str = "digits"  # whose models, at its width and depth
    scales: tuple[int, ...] = tuple(range(4, len(SIDES) + 1))  # of the 512 px schedule: L = 30, 66, ... 2240
    processes: int = 5  # fresh ones, one after another; 1: this one, and no interval
    repeats: int = 3  # in each
    threads: int = 0  # 0: torch's own choice
    processor_time: bool = False  # of one thread: seconds that it computed, whatever else the machine does beside
    out: Path = Path("benchmarks/results/lengths.json")


def drawer(config: RunConfig, pattern: str, count: int) -> Callable[[], object]:
    """A function that draws one image of the first `count` scales."""
    sides = SIDES[:count]
    whole = override(
        config,
        {
            "model.pattern": pattern,
            "tokenizer.patch_sides": list(sides),
            "data.image_size": sides[-1] * config.tokenizer.downsample,
        },
    )
    torch.manual_seed(0)
    model = ScaleTransformer(whole.model, whole.token_space, whole.runtime).eval()
    quantizer, sample = ResidualQuantizer(whole.tokenizer).eval(), SampleConfig(cfg_scale=0.0, top_k=0, top_p=0.0)
    return lambda: generate(model, quantizer, torch.zeros(1, dtype=torch.long), [0], sample)


def measure(settings: Settings) -> list[dict[str, Any]]:
    """One row a model: milliseconds and bytes by L, and where they cross those of `intra+global`, over processes.

    Raises:
        UserError: a preset that there is not, or a number of scales out of range.
    """
    if settings.preset not in PRESETS:
        raise one_of("preset", settings.preset, PRESETS)
    if not settings.scales or not all(1 <= count <= len(SIDES) for count in settings.scales):
        raise UserError(f"scales: {settings.scales}; allowed: one number or more, each from 1 to {len(SIDES)}")
    return by_length.rows_of(by_length.in_processes(settings.processes, alone, settings), "pattern", DENSE)


def alone(settings: Settings) -> by_length.Measured:
    """What one process measures."""
    take_threads(settings.threads, settings.processor_time)
    config = override(PRESETS[settings.preset], {"runtime.device": "cpu"})
    patterns = ("global", "intra", *map("intra+".__add__, inter_scale_mixers()))

    def drawers(count: int) -> by_length.Runs:
        return {pattern: drawer(config, pattern, count) for pattern in patterns}

    at = {sum(side**2 for side in SIDES[:n]): partial(drawers, n) for n in sorted(set(settings.scales))}
    return by_length.measure(at, settings.repeats, clock_of(settings.processor_time))


def show(result: dict[str, Any]) -> None:
    """Two tables."""
    rows, machine = result["lengths"], result["machine"]
    timed = ", processor time" if result["settings"]["processor_time"] else ""
    title = f"An image, {result['settings']['preset']}, {machine['cpu']}, {machine['threads']} threads{timed}"
    Console(width=170).print(*by_length.tables(rows, "pattern", DENSE, title))


def main(settings: Settings) -> None:
    """Measure, show and write."""
    take_threads(settings.threads, settings.processor_time)
    config = PRESETS.get(settings.preset)
    sizes = {"depth": config.model.depth, "width": config.model.width} if config else {}
    result = {
        "machine": describe_machine(),
        "settings": settings_json(settings) | sizes,
        "lengths": measure(settings),
    }
    show(result)
    write_json(settings.out, result)


if __name__ == "__main__":
    begin(main, Settings, __doc__)
