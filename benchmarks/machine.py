"""What every benchmark needs: the machine in words, the rate of a large matrix product, and times taken in turn."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def describe_machine() -> dict[str, str | int]:
    """Processor, accelerator, threads and versions: what a figure is worth nothing without."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def has_bf16_units() -> bool:
    """Whether the processor multiplies bf16 natively (AVX512-BF16 or AMX)."""
    return any(unit in _cpuinfo("flags").split() for unit in ("avx512_bf16", "amx_bf16"))


def gemm_flops_per_s(size: int = 2048, repeats: int = 5, dtype: torch.dtype = torch.float32) -> float:
    """Best FLOPs a second of a square matrix product on the CPU with torch's current number of threads."""
    a, b = torch.randn(2, size, size).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def seconds(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, measured in turn so that a change of the machine's speed meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
