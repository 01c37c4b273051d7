"""Mean and covariance of features, as FID takes them: ours, batch by batch, against torch-fidelity's.

Run: `python -m benchmarks.statistics`. Each side works in a process of its own, on the same features, which are drawn
anew batch by batch and whose drawing is not counted; the ratios are what counts.

- seconds: from the first batch to `mu` and `sigma`. torch-fidelity keeps all features (float32, as its extractor gives
  them), puts them together and calls numpy's covariance; ours (`mvar.evaluation.extraction.Moments`) adds float64
  products of blocks of rows and keeps none.
- processor: the same in seconds of all its threads, which other work on the machine hardly changes.
- peak: the process's largest resident memory, above what it had before the first batch.
- error: largest difference of `sigma` between the two, relative to its largest entry.
"""

import multiprocessing
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import begin, describe_machine, settings_json
from mvar.evaluation.extraction import BATCH_SIZE, Moments
from mvar.files import write_json

SIDES = ("ours", "torch-fidelity")


@dataclass
class Settings:
    """What is measured."""

    images: int = 50_000
    features: int = 2048
    threads: int = 0  # 0: torch's own choice
    out: Path = Path("benchmarks/results/statistics.json")


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def take(side: str, settings: Settings, answer: Any) -> None:
    """One side's statistics, seconds and peak."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    if settings.threads:
        torch.set_num_threads(settings.threads)
    generator, moments, kept = torch.Generator().manual_seed(0), Moments(), []
    before, seconds, processor = peak_bytes(), 0.0, 0.0
    for start in range(0, settings.images, BATCH_SIZE):
        rows = min(BATCH_SIZE, settings.images - start)
        batch = torch.rand(rows, settings.features, generator=generator)
        began, began_processor = time.perf_counter(), time.process_time()
        moments.add(batch) if side == "ours" else kept.append(batch)
        seconds += time.perf_counter() - began
        processor += time.process_time() - began_processor
    began, began_processor = time.perf_counter(), time.process_time()
    found = moments.statistics() if side == "ours" else fid_features_to_statistics(torch.cat(kept))
    seconds += time.perf_counter() - began
    processor += time.process_time() - began_processor
    peak_mib = (peak_bytes() - before) / 2**20
    answer.put({"seconds": seconds, "processor_s": processor, "peak_mib": peak_mib, "sigma": found["sigma"]})


def apart(side: str, settings: Settings) -> dict[str, Any]:
    """As `take`, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=take, args=(side, settings, answer))
    process.start()
    found = answer.get()
    process.join()
    return found


def main(settings: Settings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    found = {side: apart(side, settings) for side in SIDES}
    ours, theirs = (found[side].pop("sigma") for side in SIDES)
    own, other = (found[side] for side in SIDES)
    result = {
        "machine": describe_machine(),
        "settings": settings_json(settings),
        **found,
        "ratio_seconds": other["seconds"] / own["seconds"],
        "ratio_processor": other["processor_s"] / own["processor_s"],
        "ratio_peak": other["peak_mib"] / max(own["peak_mib"], 1.0),
        "error": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    }
    table = Table(title=f"{settings.images:,} x {settings.features:,} features, {result['machine']['threads']} threads")
    for column in ("", "seconds", "processor s", "peak MiB"):
        table.add_column(column, justify="right" if column else "left")
    for side in SIDES:
        table.add_row(side, *(f"{found[side][name]:.2f}" for name in ("seconds", "processor_s", "peak_mib")))
    table.add_row("ratio", *(f"{result[f'ratio_{name}']:.2f}" for name in ("seconds", "processor", "peak")))
    Console().print(table)
    print(f"Largest difference of the covariances, relative to the largest entry: {result['error']:.1e}.")
    write_json(settings.out, result)


if __name__ == "__main__":
    begin(main, Settings, __doc__)
