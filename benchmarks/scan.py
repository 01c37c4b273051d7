"""Speed of the Mamba-2 scan: against the torch path of Hugging Face transformers, and against the GEMM rate.

Run: `pip install -c constraints.txt -e ".[benchmarks]"` once, then `python -m benchmarks.scan`. Everything is measured
in turn within one process; the ratios are what counts.

- ratio: seconds of transformers over ours, for the scan alone and for the whole mixer with the same weights. The two
  results are compared before anything is timed.
- FLOP rate / GEMM rate: the FLOPs of our own matrix products (`ssd_flops`, `Mamba2.flops`; 3 times that with backward)
  over our median wall time, against a large matrix product's best (`benchmarks.machine.gemm_flops_per_s`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import begin, describe_machine, passes, seconds, settings_json, with_gemm
from mvar.config import ModelConfig, RuntimeConfig
from mvar.errors import UserError
from mvar.files import write_json
from mvar.kernels.scan import ssd_flops, ssd_scan
from mvar.mixers.mamba import Mamba2
from mvar.scales import PATCH_SIDES, ScaleSchedule

RATIO_GOAL, RATE_GOAL = 5.0, 0.40
INSTALL = 'pip install -c constraints.txt -e ".[benchmarks]"'


@dataclass
class Settings:
    """What is measured."""

    widths: tuple[int, ...] = (1024, 256)  # D; heads of 64, expand 2, state 64
    resolutions: tuple[str, ...] = ("256", "512")  # L = 680 and 2240
    batch: int = 1
    repeats: int = 5
    threads: int = 0  # 0: torch's own choice
    peer: bool = True  # --no-peer: without transformers, the FLOP rate alone
    out: Path = Path("benchmarks/results/scan.json")


def load_peer() -> Any:
    """The module of transformers' Mamba-2; where it cannot be had, a `UserError` that says what to install."""
    try:
        from transformers.models.mamba2 import modeling_mamba2
    except ImportError:
        raise UserError(
            f"peer: transformers is not installed, so there is nothing to compare with; allowed: {INSTALL}, or "
            "--no-peer for our FLOP rate alone"
        ) from None
    if not hasattr(modeling_mamba2, "mamba2_chunk_scan"):
        raise UserError(f"peer: transformers is too old for this comparison; allowed: 5 or newer, {INSTALL}")
    return modeling_mamba2


def scan_pair(
    width: int, length: int, batch: int, peer: Any
) -> tuple[list[Tensor], dict[str, Callable[..., Tensor]], int]:
    """Inputs as the mixer has them (slices of one tensor, decays as initialised), and the functions to compare."""
    heads, headdim, d_state = width // 32, 64, 64
    x, b, c = torch.randn(batch, length, 2 * width + 2 * d_state).split([2 * width, d_state, d_state], -1)
    dt = torch.exp(torch.empty(batch, length, heads).uniform_(-6.9, -2.3))
    leaves = [x.unflatten(-1, (heads, headdim)), dt, -torch.empty(heads).uniform_(1, 16), b, c, torch.ones(heads)]
    functions = {"ours": lambda x, dt, a, b, c, d: ssd_scan(x, dt, a, b, c, d, backend="torch", need_state=False)[0]}
    if peer:
        functions["transformers"] = lambda x, dt, a, b, c, d: peer.mamba2_chunk_scan(
            x, dt, a, b[:, :, None], c[:, :, None], 256, D=d
        )
    flops = batch * ssd_flops(length, heads, headdim, d_state)
    return [leaf.detach().requires_grad_() for leaf in leaves], functions, flops


def mixer_pair(
    width: int, length: int, batch: int, peer: Any
) -> tuple[list[Tensor], dict[str, Callable[..., Tensor]], int]:
    """The whole mixer; the gradients are those of its input and of all parameters."""
    config = ModelConfig(width=width, num_heads=1)
    mixer = Mamba2(config, config.mamba, RuntimeConfig(scan_backend="torch"))
    names = [name for name, _ in mixer.named_parameters()]
    span = ScaleSchedule((1,) * length).span()

    def ours(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, parameters, strict=True)), (x, span))[0]

    functions = {"ours": ours}
    if peer:
        from transformers import Mamba2Config

        theirs = peer.Mamba2Mixer(
            Mamba2Config(
                hidden_size=width, num_heads=width // 32, head_dim=64, state_size=64, n_groups=1, use_bias=False,
                num_hidden_layers=1, chunk_size=256,
            ),
            layer_idx=0,
        )  # fmt: skip

        def transformers(x: Tensor, *parameters: Tensor) -> Tensor:
            return torch.func.functional_call(theirs, dict(zip(names, parameters, strict=True)), (x,))

        functions["transformers"] = transformers
    leaves = [torch.randn(batch, length, width), *(p.detach() for p in mixer.parameters())]
    return [leaf.requires_grad_() for leaf in leaves], functions, batch * Mamba2.flops(config, config.mamba, span)


def measure(settings: Settings, width: int, length: int, part: str, peer: Any) -> list[dict[str, Any]]:
    """One row for forward and one with backward."""
    torch.manual_seed(0)
    leaves, functions, flops = {"scan": scan_pair, "mixer": mixer_pair}[part](width, length, settings.batch, peer)
    if peer:
        with torch.no_grad():
            results = [function(*leaves) for function in functions.values()]
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
    runs = {(name, what): run for name, function in functions.items() for what, run in passes(function, leaves).items()}
    taken, gemm = with_gemm(lambda: seconds(runs, settings.repeats))
    rows = []
    for what, factor in (("forward", 1), ("forward + backward", 3)):
        own, other = taken["ours", what], taken.get(("transformers", what))
        rows.append(
            {"part": part, "width": width, "length": length, "pass": what, "ours_s": own, "transformers_s": other}
            | {"ratio": other and other / own, "gemm_gflops_per_s": gemm / 1e9}
            | {"rate_over_gemm": factor * flops / own / gemm}
        )
    return rows


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    table = Table(title=f"Mamba-2, batch {result['settings']['batch']}, {machine['cpu']}, {machine['threads']} threads")
    columns = ("part", "D", "L", "pass", "ours ms", "transformers ms", "ratio", "FLOP rate / GEMM rate")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number > 3 else "left")
    for row in result["rows"]:
        other = "-" if row["ratio"] is None else f"{1e3 * row['transformers_s']:.1f}"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.1f}"
        what = (row["part"], str(row["width"]), str(row["length"]), row["pass"], f"{1e3 * row['ours_s']:.1f}")
        table.add_row(*what, other, ratio, f"{row['rate_over_gemm']:.2f}")
    Console().print(table)
    print(f"Goals, for the scan with backward: ratio {RATIO_GOAL:g}, FLOP rate / GEMM rate {RATE_GOAL:g}.")


def main(settings: Settings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    peer = load_peer() if settings.peer else None
    rows = []
    for width in settings.widths:
        for resolution in settings.resolutions:
            length = ScaleSchedule(PATCH_SIDES[resolution]).num_tokens
            for part in ("scan", "mixer"):
                rows += measure(settings, width, length, part, peer)
    versions = {"transformers": __import__("transformers").__version__} if peer else {}
    result = {
        "machine": describe_machine() | versions,
        "settings": settings_json(settings),
        "goals": {"ratio": RATIO_GOAL, "rate_over_gemm": RATE_GOAL},
        "rows": rows,
    }
    show(result)
    write_json(settings.out, result)


if __name__ == "__main__":
    begin(main, Settings, __doc__)
