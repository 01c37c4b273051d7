"""What every benchmark needs: the machine in words, the rate of a large matrix product, and times taken in turn."""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from torch import Tensor

from mvar.errors import USER_ERROR, UserError, complain

T = TypeVar("T")
GEMM_SIZES = (1536, 2048)  # which of them is faster differs by processor, and on one from minute to minute
GEMM_REPEATS = 5


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


def gemm_flops_per_s(clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOPs a second of a large fp32 matrix product on the CPU with torch's current number of threads.

    The yardstick of every "FLOP rate / GEMM rate". It is the demanding one: the best of several products of several
    sizes, while what is held against it is a median, so that no slow moment of the machine can flatter a ratio.
    """
    best = 0.0
    for size in GEMM_SIZES:
        a, b = torch.randn(2, size, size)
        for _ in range(GEMM_REPEATS):
            start = clock()
            a @ b
            best = max(best, 2 * size**3 / (clock() - start))
    return best


def with_gemm(measure: Callable[[], T], clock: Callable[[], float] = time.perf_counter) -> tuple[T, float]:
    """What `measure` returns, and the better of the yardstick's rates before and after it."""
    before = gemm_flops_per_s(clock)
    measured = measure()
    return measured, max(before, gemm_flops_per_s(clock))


def seconds(
    runs: Mapping[T, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[T, float]:
    """Median seconds of each, measured in turn."""
    return {name: statistics.median(taken) for name, taken in times(runs, repeats, clock).items()}


def times(
    runs: Mapping[T, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[T, list[float]]:
    """Seconds of each and every repeat, all in turn so that a change of the machine's speed meets all of them."""
    found: dict[T, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            found[name].append(clock() - start)
    return found


def clock_of(processor_time: bool) -> Callable[[], float]:
    """Seconds that this process computed, whatever else the machine does beside; or seconds of the wall."""
    return time.process_time if processor_time else time.perf_counter


def take_threads(threads: int, processor_time: bool) -> None:
    """Compute with so many threads; 0: torch's own choice.

    Raises:
        UserError: processor time is that of one thread.
    """
    if processor_time and threads != 1:
        raise UserError(f"processor-time: threads {threads}; allowed: with --threads 1")
    if threads:
        torch.set_num_threads(threads)


def settings_json(settings: object) -> dict[str, Any]:
    """Settings as a figure's file has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}


def begin(main: Callable[[Any], None], settings: type, description: str | None) -> None:
    """Run a benchmark as a command: a mistake of the user is one line and exit code 2."""
    try:
        main(tyro.cli(settings, description=description))
    except UserError as error:
        sys.exit(complain(str(error), USER_ERROR))


def passes(function: Callable[..., Tensor], leaves: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """The function alone, and with gradients for all its inputs."""
    weights = torch.randn_like(function(*leaves))

    def forward() -> None:
        with torch.no_grad():
            function(*leaves)

    def both() -> None:
        torch.autograd.grad(function(*leaves), leaves, weights)

    return {"forward": forward, "forward + backward": both}
