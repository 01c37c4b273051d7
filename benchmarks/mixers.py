"""Speed of the gated mixers' kernels, and of every mixer between scales as an image grows.

Run: `pip install -c constraints.txt -e ".[benchmarks,dev]"` once, then `python -m benchmarks.mixers --threads 1`.
Everything is measured in turn within one process; the ratios are what counts. `--processor-time` beside other work.

- ratio: seconds of a peer over ours. Of `gdn` the peer is the chunked torch path of Hugging Face transformers
  (Qwen3-Next), of `gla` the torch path of fla-core, which goes token by token: there is no other. The results are
  compared before anything is timed.
- FLOP rate / GEMM rate: the FLOPs of our products (`gated_linear_flops`, `gated_delta_flops`; 3 times that with
  backward) over our median time, against a large matrix product's best (`benchmarks.machine.gemm_flops_per_s`).
- by L: seconds in which one mixer goes through an image of L tokens scale by scale, with its state, as sampling does,
  and the memory that it holds; the first 4 to 10 scales of the 512 px schedule (`benchmarks.by_length`). A crossing:
  from which L on it takes less than `global` at every L, of time beyond what processes scatter by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import by_length
from benchmarks.machine import (
    begin,
    clock_of,
    describe_machine,
    passes,
    seconds,
    settings_json,
    take_threads,
    with_gemm,
)
from mvar.config import ModelConfig, RuntimeConfig
from mvar.errors import UserError
from mvar.files import write_json
from mvar.kernels.gated_delta import gated_delta_flops, gated_delta_rule
from mvar.kernels.gated_linear import gated_linear_attention, gated_linear_flops
from mvar.mixers.base import Chosen, Mixer, inter_scale_mixers
from mvar.scales import PATCH_SIDES, ScaleSchedule
from mvar.shipped import load

INSTALL = 'pip install -c constraints.txt -e ".[benchmarks,dev]"'
HEAD = 64
Peers = dict[str, Callable[..., Tensor]]


@dataclass
class Settings:
    """What is measured."""

    widths: tuple[int, ...] = (1024, 256)  # D; heads of 64
    resolutions: tuple[str, ...] = ("256", "512")  # L = 680 and 2240
    mixer_width: int = 256  # of the mixers that go through an image
    processes: int = 5  # of times by L: fresh ones, one after another; 1: this one, and no interval
    repeats: int = 5  # in each
    threads: int = 0  # 0: torch's own choice
    processor_time: bool = False  # of one thread: seconds that it computed, whatever else the machine does beside
    peer: bool = True  # --no-peer: without transformers and fla-core, the FLOP rate and the times by L alone
    out: Path = Path("benchmarks/results/mixers.json")

    @property
    def clock(self) -> Callable[[], float]:
        """What seconds are taken of."""
        return clock_of(self.processor_time)


def load_peers() -> Peers:
    """The peers, called as ours are; where one cannot be had, a `UserError` that says what to install."""
    try:
        from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule
    except ImportError:
        raise UserError(_missing("transformers")) from None
    found = find_spec("fla")
    if not found or not found.submodule_search_locations:
        raise UserError(_missing("fla-core"))
    naive = load(Path(found.submodule_search_locations[0]) / "ops" / "gla" / "naive.py")  # the package wants a GPU

    in_torch = unwrap(torch_chunk_gated_delta_rule)  # where fla-core is there, what is around it takes a GPU's kernel

    def gdn(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
        return in_torch(q, k, v, log_decay, beta)[0]

    def gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        return naive.naive_recurrent_gla(q, k, v, log_decay)[0]

    return {"gla": gla, "gdn": gdn}


def _missing(name: str) -> str:
    return f"peer: {name} is not installed, so there is nothing to compare with; allowed: {INSTALL}, or --no-peer"


def kernel(name: str, width: int, length: int) -> tuple[list[Tensor], Callable[..., Tensor], int]:
    """Inputs as the mixer has them, our function, and its FLOPs."""
    heads, keys = width // HEAD, HEAD // 2 if name == "gla" else HEAD
    q, k = torch.randn(2, 1, length, heads, keys)
    v = torch.randn(1, length, heads, HEAD)
    k = F.normalize(k, dim=-1)
    if name == "gla":
        leaves = [q, k, v, F.logsigmoid(torch.randn_like(k)) / 16]

        def ours(*inputs: Tensor) -> Tensor:
            q, *rest = inputs
            return gated_linear_attention(q * keys**-0.5, *rest, need_state=False)[0]

        count = gated_linear_flops
    else:
        leaves = [q, k, v, -F.softplus(torch.randn(1, length, heads)), torch.rand(1, length, heads)]

        def ours(*inputs: Tensor) -> Tensor:
            q, *rest = inputs
            return gated_delta_rule(q * keys**-0.5, *rest, need_state=False)[0]

        count = gated_delta_flops
    return [leaf.detach().requires_grad_() for leaf in leaves], ours, count(length, heads, keys, HEAD)


def measure_kernel(settings: Settings, name: str, width: int, length: int, peers: Peers) -> list[dict[str, Any]]:
    """One row for forward and one with backward."""
    torch.manual_seed(0)
    leaves, ours, flops = kernel(name, width, length)
    functions = {"ours": ours, **({"peer": peers[name]} if peers else {})}
    with torch.no_grad():
        results = [function(*leaves) for function in functions.values()]
    torch.testing.assert_close(results[-1], results[0], rtol=1e-3, atol=1e-4)
    runs = {(who, what): run for who, function in functions.items() for what, run in passes(function, leaves).items()}
    taken, gemm = with_gemm(lambda: seconds(runs, settings.repeats, settings.clock), settings.clock)
    rows = []
    for what, factor in (("forward", 1), ("forward + backward", 3)):
        own, other = taken["ours", what], taken.get(("peer", what))
        row = {"mixer": name, "width": width, "length": length, "pass": what, "ours_s": own, "peer_s": other}
        rows.append(row | {"ratio": other and other / own, "rate_over_gemm": factor * flops / own / gemm})
    return rows


@torch.no_grad()
def through(mixer: Mixer, x: Tensor, schedule: ScaleSchedule) -> None:
    """A mixer's part of drawing one image: scale after scale, with the state."""
    state = None
    for span in schedule.steps():
        _, state = mixer(x[:, span.start : span.stop], span, state)


def measure_lengths(settings: Settings) -> list[dict[str, Any]]:
    """One row a mixer: milliseconds and bytes by L, and where they cross those of `global`, over processes."""
    return by_length.rows_of(by_length.in_processes(settings.processes, alone, settings), "mixer", "global")


def alone(settings: Settings) -> by_length.Measured:
    """What one process measures by L."""
    take_threads(settings.threads, settings.processor_time)
    config = ModelConfig(width=settings.mixer_width, num_heads=max(1, settings.mixer_width // HEAD))
    torch.manual_seed(0)
    mixers = {n: Chosen.of(config, n).build(config, RuntimeConfig(device="cpu")) for n in inter_scale_mixers()}
    sides = PATCH_SIDES["512"]
    schedules = [ScaleSchedule(sides[:count]) for count in range(4, len(sides) + 1)]

    def runs(schedule: ScaleSchedule) -> by_length.Runs:
        x = torch.randn(1, schedule.num_tokens, config.width)
        return {name: partial(through, mixer, x, schedule) for name, mixer in mixers.items()}

    at = {schedule.num_tokens: partial(runs, schedule) for schedule in schedules}
    return by_length.measure(at, settings.repeats, settings.clock)


def show(result: dict[str, Any]) -> None:
    """Three tables."""
    timed = ", processor time" if result["settings"]["processor_time"] else ""
    machine = f"{result['machine']['cpu']}, {result['machine']['threads']} threads{timed}"
    table = Table(title=f"Kernels, batch 1, {machine}")
    for number, column in enumerate(("mixer", "D", "L", "pass", "ours ms", "peer ms", "ratio", "FLOP rate / GEMM")):
        table.add_column(column, justify="right" if number > 3 else "left")
    for row in result["kernels"]:
        other = ["-", "-"] if row["ratio"] is None else [f"{1e3 * row['peer_s']:.1f}", f"{row['ratio']:.1f}"]
        what = row["mixer"], str(row["width"]), str(row["length"]), row["pass"], f"{1e3 * row['ours_s']:.1f}"
        table.add_row(*what, *other, f"{row['rate_over_gemm']:.2f}")
    Console().print(table)
    title = f"A mixer through an image, width {result['settings']['mixer_width']}, {machine}"
    Console(width=170).print(*by_length.tables(result["lengths"], "mixer", "global", title))


def main(settings: Settings) -> None:
    """Measure, show and write."""
    take_threads(settings.threads, settings.processor_time)
    peers = load_peers() if settings.peer else {}
    rows = []
    for width in settings.widths:
        for resolution in settings.resolutions:
            length = ScaleSchedule(PATCH_SIDES[resolution]).num_tokens
            for name in ("gla", "gdn"):
                rows += measure_kernel(settings, name, width, length, peers)
    versions = {"transformers": __import__("transformers").__version__} if peers else {}
    result = {
        "machine": describe_machine() | versions,
        "settings": settings_json(settings),
        "kernels": rows,
        "lengths": measure_lengths(settings),
    }
    show(result)
    write_json(settings.out, result)


if __name__ == "__main__":
    begin(main, Settings, __doc__)
