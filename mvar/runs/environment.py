"""What a run was made with: code, versions, hardware, kernel back ends; stored in its `env.json`."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvar import layout
from mvar.config import RunConfig, RuntimeConfig
from mvar.files import read_json
from mvar.pattern import mixers_of

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "torch-fidelity",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "mamba-ssm",
    "causal-conv1d",
    "fla-core",
    "flash-attn",
)


STEPS = ("strategy", "micro_batch", "checkpoint_activations")


@cache
def git_state() -> dict[str, Any]:
    """Commit of the code and whether files differ from it; nulls where the code is neither a git checkout nor a
    submission's snapshot of one, whose directory is named then."""
    root = Path(__file__).parents[2]
    snapshot = root / layout.SNAPSHOT
    if snapshot.is_file():
        return {**read_json(snapshot), "snapshot": root.name}

    if not (root / ".git").exists():  # installed: an enclosing repository, e.g. of the environment, is not the code's
        return {"commit": None, "dirty": None}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *arguments], check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


@cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(backends: dict[str, str]) -> dict[str, Any]:
    """The environment as plain JSON values.

    Args:
        backends: the kernel back ends in use, e.g. `{"attention": "torch", "scan": "torch"}`.
    """
    import torch

    return {
        "schema_version": 1,
        "git": git_state(),
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "num_threads": torch.get_num_threads(),
        "backends": backends,
    }


def kernels_of(runtime: RuntimeConfig, device: "torch.device") -> dict[str, str]:
    """The back ends that `runtime` means on a device."""
    from mvar.kernels.attention import takes_runs
    from mvar.kernels.scan import choose_backend

    attention = runtime.attention_backend
    if attention == "auto":
        attention = "torch (intra in half precision: flash_attn)" if takes_runs(attention, device) else "torch"
    return {"attention": attention, "scan": choose_backend(runtime.scan_backend, _probe(device)).name}


def scan_in_words(config: RunConfig, device: "torch.device") -> str | None:
    """The back end of Mamba's scan on a GPU, and why it is that one; None where there is no choice to tell of."""
    from mvar.kernels.scan import choose_backend

    if device.type != "cuda" or "mamba" not in mixers_of(config.model.pattern):
        return None
    name, why = choose_backend(config.runtime.scan_backend, _probe(device))
    if config.runtime.compile:
        return "runtime.scan_backend: plain in training, which is compiled"
    return f"runtime.scan_backend: {name} ({why})"


def _probe(device: "torch.device") -> "torch.Tensor":
    import torch

    return torch.empty(0, device=device)


def execution_of(runtime: RuntimeConfig, device: "torch.device") -> dict[str, Any]:
    """How work is done here, which changes no result beyond rounding: device, kernels, TF32, processes, threads."""
    import torch

    from mvar.training.distributed import current_team

    team = current_team()
    return {
        "device": device.type,
        **kernels_of(runtime, device),
        "tf32": device.type == "cuda" and torch.get_float32_matmul_precision() != "highest",
        "processes": team.world if team else 1,
    }


def steps_of(runtime: RuntimeConfig) -> dict[str, Any]:
    """How steps are shared, split and recomputed, which changes no result either, where that is not as by default."""
    default = RuntimeConfig()
    return {name: value for name in STEPS if (value := getattr(runtime, name)) != getattr(default, name)}


def at_one_piece() -> bool:
    """Whether several processes are at one piece of work now, which none of them may leave by itself."""
    from mvar.training.distributed import current_team

    return bool((team := current_team()) and team.gathered)
