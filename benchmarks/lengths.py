"""Time in which whole models of `inter_scale` draw one image, as it grows from 30 to 2,240 tokens.

Run: `python -m benchmarks.lengths --threads 1`. All models are measured in turn within one process. `--processor-time`
beside other work.

- ms: one image, class given, no guidance, no filter: the generator scale by scale with its state, the draws, and the
  sum of the codes that the next scale is made of; decoding is left out, which is the same for all. Weights are random:
  what is drawn takes no part in the time.
- crossing: from which L on a model takes less time than `intra+global` at every L that was measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import begin, clock_of, describe_machine, seconds, settings_json, take_threads
from benchmarks.mixers import crossing
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
    repeats: int = 3
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
    """One row a model: milliseconds by L, and where it crosses `intra+global`.

    Raises:
        UserError: a preset that there is not, or a number of scales out of range.
    """
    if settings.preset not in PRESETS:
        raise one_of("preset", settings.preset, PRESETS)
    if not settings.scales or not all(1 <= count <= len(SIDES) for count in settings.scales):
        raise UserError(f"scales: {settings.scales}; allowed: one number or more, each from 1 to {len(SIDES)}")
    config = override(PRESETS[settings.preset], {"runtime.device": "cpu"})
    found: dict[str, dict[int, float]] = {
        p: {} for p in ("global", "intra", *map("intra+".__add__, inter_scale_mixers()))
    }
    for count in sorted(set(settings.scales)):
        runs = {pattern: drawer(config, pattern, count) for pattern in found}
        for pattern, taken in seconds(runs, settings.repeats, clock_of(settings.processor_time)).items():
            found[pattern][sum(side**2 for side in SIDES[:count])] = 1e3 * taken
    return [{"pattern": p, "ms": ms, "crossing": crossing(ms, found[DENSE])} for p, ms in found.items()]


def show(result: dict[str, Any]) -> None:
    """A table."""
    rows, machine = result["lengths"], result["machine"]
    timed = ", processor time" if result["settings"]["processor_time"] else ""
    table = Table(
        title=f"An image, ms, {result['settings']['preset']}, {machine['cpu']}, {machine['threads']} threads{timed}"
    )
    table.add_column("layers")
    for length in rows[0]["ms"]:
        table.add_column(f"L = {length}", justify="right")
    table.add_column(f"less than {DENSE} from L =", justify="right")
    for row in rows:
        table.add_row(row["pattern"], *(f"{ms:.1f}" for ms in row["ms"].values()), str(row["crossing"] or "-"))
    Console().print(table)


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
