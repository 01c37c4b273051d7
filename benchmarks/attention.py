"""Attention statistics: time against materialised maps at 256 px, memory at 512 px. One thread unless told otherwise.

Run: `python -m benchmarks.attention`. Times are measured in turn within one process; the ratios are what counts.

- ratio: seconds of the same statistics (mass by key scale and entropy of every query) from materialised `L x L` maps
  over ours, for the heads of one layer. There are two such peers, because entropy from a map can be had in two ways:
  `p log p`, and log-sum-exp minus the expected score, which is quicker; a third computes the mass alone, and so less
  than ours does. The goal is held against the quickest that computes the same.
- whole pass: the forward pass of a model of a few layers with the statistics of each, both ways.
- memory: peak resident memory of a process that measures one image at 512 px on a random model, beyond what it held
  with the weights loaded and the libraries warm (a tiny model measured before).
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import begin, describe_machine, seconds, settings_json
from mvar.config import TokenSpace
from mvar.files import write_json
from mvar.presets import model_size
from mvar.probes.attention_mass import attention_rows, observing, scale_attention
from mvar.scales import PATCH_SIDES, ScaleSchedule
from mvar.transformer import ScaleTransformer

RATIO_GOAL, MEMORY_GOAL_MIB = 3.0, 256


@dataclass
class Settings:
    """What is measured."""

    heads: int = 16  # of 64 channels, as VAR-d16
    whole_depth: int = 2  # layers of the whole pass; width of depth 16
    memory_depth: int = 16
    repeats: int = 7
    threads: int = 1
    measure_memory_of: str = ""  # "ours" or "maps": be the process whose memory is measured
    out: Path = Path("benchmarks/results/attention.json")


def masked_scores(q: Tensor, k: Tensor, schedule: ScaleSchedule) -> Tensor:
    """All L x L scores, as the official code masks them."""
    levels = torch.tensor(schedule.levels)
    return q @ k.transpose(-1, -2) + torch.where(levels[:, None] < levels, -torch.inf, 0.0)


def mass_of(p: Tensor, schedule: ScaleSchedule) -> Tensor:
    return torch.cat([part.sum(-1, keepdim=True) for part in p.split(schedule.lengths, -1)], -1)


def from_maps_plainly(q: Tensor, k: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    p = masked_scores(q, k, schedule).softmax(-1)
    return mass_of(p, schedule), -torch.xlogy(p, p).sum(-1)


def from_maps(q: Tensor, k: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    scores = masked_scores(q, k, schedule)
    lse = scores.logsumexp(-1)
    p = scores.softmax(-1)
    return mass_of(p, schedule), lse - scores.nan_to_num_(neginf=0).mul_(p).sum(-1)


def mass_from_maps(q: Tensor, k: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, None]:
    return mass_of(masked_scores(q, k, schedule).softmax(-1), schedule), None


PEERS = {"maps, p log p": from_maps_plainly, "maps, log-sum-exp": from_maps, "maps, mass alone": mass_from_maps}
SAME = ("maps, p log p", "maps, log-sum-exp")  # compute what ours does


def build(depth: int, size: int, resolution: str) -> ScaleTransformer:
    """A model of `depth` layers of VAR-d`size`'s width, with random weights."""
    config = model_size(size).model_copy(update={"depth": depth, "pattern": "global"})
    space = TokenSpace(PATCH_SIDES[resolution], vocab_size=4096, code_channels=32, num_classes=1000)
    model = ScaleTransformer.empty(config, space).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


def one_image(model: ScaleTransformer) -> tuple[Tensor, Tensor]:
    schedule = model.schedule
    return torch.zeros(1, dtype=torch.long), torch.randn(1, schedule.num_tokens - 1, model.space.code_channels)


@torch.inference_mode()
def rows_from_maps(model: ScaleTransformer, labels: Tensor, inputs: Tensor) -> list[Tensor]:
    """What `attention_rows` gives, from the maps of every layer."""
    found = []

    def see(number: int, q: Tensor, k: Tensor) -> None:
        mass, entropy = from_maps(q, k, model.schedule)
        by_query = torch.cat((mass, entropy[..., None]), -1)
        found.append(torch.stack([part.double().mean(2) for part in by_query.split(model.schedule.lengths, 2)], 2))

    with observing(model, see):
        model(labels, inputs)
    return found


@torch.inference_mode()
def measure_time(settings: Settings) -> dict[str, Any]:
    schedule = ScaleSchedule(PATCH_SIDES["256"])
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, settings.heads, schedule.num_tokens, 64)
    q = q / 4
    ours = scale_attention(q, k, schedule)
    for name in SAME:
        torch.testing.assert_close(PEERS[name](q, k, schedule), ours, rtol=1e-4, atol=1e-4)
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: scale_attention(q, k, schedule)}
    runs |= {name: lambda peer=peer: peer(q, k, schedule) for name, peer in PEERS.items()}
    layer = seconds(runs, settings.repeats)
    model = build(settings.whole_depth, 16, "256")
    labels, inputs = one_image(model)
    passes: dict[str, Callable[[], Any]] = {
        "forward alone": lambda: model(labels, inputs),
        "ours": lambda: list(attention_rows(model, [(labels, inputs)])),
        "maps, log-sum-exp": lambda: rows_from_maps(model, labels, inputs),
    }
    whole = seconds(passes, max(1, settings.repeats // 2))
    return {
        "layer_s": layer,
        "ratio": min(layer[name] for name in SAME) / layer["ours"],
        "ratio_to": {name: layer[name] / layer["ours"] for name in PEERS},
        "whole_pass_s": whole,
        "whole_pass_ratio": whole["maps, log-sum-exp"] / whole["ours"],
    }


def status_mib(field: str) -> float:
    """A field of this process's status, e.g. VmRSS (resident now) or VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def measure_own_memory(settings: Settings) -> None:
    """In a process of its own: print weights and peak beyond them, in MiB."""
    run = {"ours": lambda m, *image: list(attention_rows(m, [image])), "maps": rows_from_maps}
    measured = run[settings.measure_memory_of]
    tiny = build(1, 1, "256")
    measured(tiny, *one_image(tiny))
    model = build(settings.memory_depth, settings.memory_depth, "512")
    image, before = one_image(model), status_mib("VmRSS")
    measured(model, *image)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    print(weights, status_mib("VmHWM") - before)


def measure_memory(settings: Settings) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for what in ("ours", "maps"):
        command = [sys.executable, "-m", "benchmarks.attention", "--measure-memory-of", what]
        command += ["--memory-depth", str(settings.memory_depth), "--threads", str(settings.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        weights, beyond = map(float, done.stdout.split())
        result |= {"weights_mib": weights, f"{what}_beyond_weights_mib": beyond}
    return result


def show(result: dict[str, Any]) -> None:
    machine, memory, timing = result["machine"], result["memory"], result["time"]
    table = Table(title=f"Attention statistics, {machine['cpu']}, {machine['threads']} thread(s)", title_justify="left")
    for column in ("what", "measured", "ours is better by", "goal"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, taken in timing["layer_s"].items():
        ratio = "" if name == "ours" else f"{timing['ratio_to'][name]:.1f}"
        goal = f"{RATIO_GOAL:g}" if name in SAME else ""
        table.add_row(f"256 px, one layer: {name}", f"{1e3 * taken:.1f} ms", ratio, goal)
    for name, taken in timing["whole_pass_s"].items():
        ratio = f"{timing['whole_pass_ratio']:.2f}" if name.startswith("maps") else ""
        table.add_row(f"256 px, whole pass: {name}", f"{1e3 * taken:.0f} ms", ratio, "")
    depth = result["settings"]["memory_depth"]
    beyond = f"512 px, depth {depth}, beyond the weights ({memory['weights_mib']:.0f} MiB)"
    ours, maps = memory["ours_beyond_weights_mib"], memory["maps_beyond_weights_mib"]
    table.add_row(f"{beyond}: ours", f"{ours:.0f} MiB", "", f"{MEMORY_GOAL_MIB} MiB")
    table.add_row(f"{beyond}: maps", f"{maps:.0f} MiB", f"{maps / ours:.1f}", "")
    Console().print(table)


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    if settings.measure_memory_of:
        measure_own_memory(settings)
        return
    result = {
        "machine": describe_machine(),
        "settings": settings_json(settings),
        "goals": {"ratio": RATIO_GOAL, "beyond_weights_mib": MEMORY_GOAL_MIB},
        "time": measure_time(settings),
        "memory": measure_memory(settings),
    }
    show(result)
    write_json(settings.out, result)


if __name__ == "__main__":
    begin(main, Settings, __doc__)
