"""Peak memory of one training step of the papers' models on 8 GPUs, counted on tensors without values: no GPU needed.

Run: `python -m benchmarks.memory`. A peak is 16 bytes a parameter, what the forward pass keeps for the backward pass,
and the logits (`mvar.training.footprint`); the last column names settings below the limit, the quickest there are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import begin
from mvar.config import override
from mvar.files import write_json
from mvar.kernels.recompute import Kept
from mvar.presets import PRESETS
from mvar.runs.gpu_plan import GB, settle
from mvar.runs.gpus import Machine
from mvar.training.footprint import Strategy, footprint

ROWS = {
    **{f"VAR-d{depth}": (f"imagenet256-d{depth}", "global") for depth in (16, 20, 24, 30)},
    "VAR-d36 at 512 px": ("imagenet512-d36", "global"),
    **{f"M-VAR-d{depth}": (f"imagenet256-d{depth}", "intra+mamba") for depth in (16, 20, 24, 30, 32)},
}
COLUMNS: dict[str, tuple[Kept, Strategy]] = {
    "now": ("none", "ddp"),
    "all layers recomputed": ("full", "ddp"),
    "FSDP2": ("none", "fsdp"),
    "both": ("full", "fsdp"),
}


@dataclass
class Settings:
    """What is counted."""

    on: str = "8xh100-80gb"
    models: tuple[str, ...] = tuple(ROWS)
    out: Path = Path("benchmarks/results/memory.json")


def row(name: str, machine: Machine) -> dict[str, Any]:
    """Peaks in GB of one model, and a setting that fits."""
    preset, pattern = ROWS[name]
    config = override(PRESETS[preset], {"model.pattern": pattern, "runtime.scan_backend": "torch"})
    images = config.train.batch_size // machine.gpus
    peaks = {
        title: footprint(config, images, kept, strategy, machine.gpus).peak / GB
        for title, (kept, strategy) in COLUMNS.items()
    }
    found = settle(config, machine)
    fits = found and {"setting": found.fields, "peak_gb": found.peak_gb}
    return {"model": name, "images_per_gpu": images, "peak_gb": peaks, "fits": fits}


def main(settings: Settings) -> None:
    """Count, print and keep."""
    machine = Machine.parse(settings.on)
    rows = [row(name, machine) for name in settings.models]
    table = Table("model", "images a GPU", *COLUMNS, f"below {machine.limit_gb:.0f} GB", title="Peak GB of one step")
    for found in rows:
        peaks = (f"{peak:,.0f}" for peak in found["peak_gb"].values())
        fits = found["fits"]
        told = f"{fits['peak_gb']:.0f} GB: {fits['setting'].replace('runtime.', '')}" if fits else "nothing"
        table.add_row(found["model"], str(found["images_per_gpu"]), *peaks, told)
    Console(width=170).print(table)
    write_json(settings.out, {"on": settings.on, "limit_gb": machine.limit_gb, "rows": rows})


if __name__ == "__main__":
    begin(main, Settings, __doc__)
