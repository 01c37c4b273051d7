"""Sampling speed at VAR's 256 px schedule: carried state against the official way, and against the GEMM rate.

Run: `python -m benchmarks.sampling`. Everything is measured in turn within one process; the ratios are what counts.

- state / prefix: M-VAR's official code runs Mamba over all past tokens again at every scale; here its state is carried.
- FLOP rate / GEMM rate: the sampler's analytic FLOPs over its wall time, against a large matrix product's.
- products / GEMM rate: the same for the sampler's linear layers alone, run again at their shapes without all else:
  most of them are of few rows (a scale's tokens), so that this, not 1, is what the FLOP rate can come near.
- bf16 / fp32: weights and activations in bf16; only processors with bf16 units can gain.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.machine import describe_machine, gemm_flops_per_s, has_bf16_units, seconds
from mvar.config import ModelConfig, SampleConfig, TokenizerConfig, TokenSpace
from mvar.cost import sample_flops
from mvar.memory import keep_freed_memory
from mvar.pattern import REGISTRY
from mvar.sampling import generate
from mvar.scales import PATCH_SIDES, Span
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

STATE_GOAL, RATE_GOAL, BF16_GOAL = 1.45, 0.80, 2.0


class PrefixRecompute(nn.Module):
    """A mixer without state, as the official sampler runs Mamba: past inputs are kept and mixed again each scale."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, span: Span, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        prefix = x if state is None else torch.cat((state, x), dim=1)
        y, _ = self.mixer(prefix, span.schedule.span(0, span.last))
        return y[:, -span.length :], prefix


@dataclass
class Settings:
    """Size of the measured sampler."""

    depth: int = 8
    width: int = 512
    batch: int = 4
    resolution: str = "256"
    repeats: int = 5
    threads: int = 0  # 0: torch's own choice
    out: Path = Path("benchmarks/results/sampling.json")


def build(settings: Settings, pattern: str) -> tuple[ScaleTransformer, ResidualQuantizer]:
    torch.manual_seed(0)
    sides = PATCH_SIDES[settings.resolution]
    space = TokenSpace(sides, vocab_size=4096, code_channels=32, num_classes=1000)
    heads = max(1, settings.width // 64)
    config = ModelConfig(depth=settings.depth, width=settings.width, num_heads=heads, pattern=pattern)
    tokenizer = TokenizerConfig(patch_sides=sides, vocab_size=4096, code_channels=32)
    return ScaleTransformer(config, space).eval(), ResidualQuantizer(tokenizer).eval()


def sampler(settings: Settings, model: ScaleTransformer, quantizer: ResidualQuantizer) -> Callable[[], Any]:
    labels = torch.arange(settings.batch)
    config = SampleConfig(cfg_scale=1.5, top_k=900, top_p=0.96)
    return lambda: generate(model, quantizer, labels, range(settings.batch), config)


def products(model: ScaleTransformer, sample: Callable[[], Any]) -> tuple[Callable[[], None], float]:
    """The linear layers of one call of a sampler, at the same shapes and in the same order; and their FLOPs."""
    calls: list[tuple[nn.Linear, Tensor]] = []

    def remember(layer: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
        calls.append((layer, torch.randn_like(arguments[0])))

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(remember) for layer in layers]
    sample()
    for hook in hooks:
        hook.remove()

    @torch.no_grad()
    def run() -> None:
        for layer, x in calls:
            F.linear(x, layer.weight, layer.bias)

    return run, sum(2.0 * x.numel() * layer.out_features for layer, x in calls)


def measure(settings: Settings) -> dict[str, Any]:
    keep_freed_memory()  # as every run does
    runs, flops = {}, {}
    for pattern in [*sorted(REGISTRY), "intra+mamba"]:
        model, quantizer = build(settings, pattern)
        runs[pattern] = sampler(settings, model, quantizer)
        flops[pattern] = settings.batch * sample_flops(model.config, model.space, guided=True)
        if pattern == "intra+mamba":
            runs["products"], product_flops = products(model, runs[pattern])
        if pattern == "intra+mamba":
            half, _ = build(settings, pattern)
            runs["intra+mamba bf16"] = sampler(settings, half.bfloat16(), quantizer)
    model, quantizer = build(settings, "intra+mamba")
    for block in model.blocks:
        block.mamba = PrefixRecompute(block.mamba)
    runs["intra+mamba, prefix"] = sampler(settings, model, quantizer)
    gemm = gemm_flops_per_s()
    taken = seconds(runs, settings.repeats)
    gemm = max(gemm, gemm_flops_per_s())
    return {
        "machine": describe_machine(),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()},
        "gemm_gflops_per_s": gemm / 1e9,
        "seconds": taken,
        "state_over_prefix": taken["intra+mamba, prefix"] / taken["intra+mamba"],
        "products_over_gemm": product_flops / taken["products"] / gemm,
        "rate_over_gemm": {name: flops[name] / taken[name] / gemm for name in flops},
        "bf16_over_fp32": taken["intra+mamba"] / taken["intra+mamba bf16"],
        "has_bf16_units": has_bf16_units(),
    }


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"Sampling, {result['settings']['batch']} images with guidance, {result['machine']['cpu']}")
    for column in ("what", "s", "ratio", "goal"):
        table.add_column(column, justify="left" if column == "what" else "right")
    taken = result["seconds"]
    for name, rate in result["rate_over_gemm"].items():
        table.add_row(f"{name}: FLOP rate / GEMM rate", f"{taken[name]:.2f}", f"{rate:.2f}", f"{RATE_GOAL:.2f}")
    table.add_row(
        "intra+mamba: its linear layers alone / GEMM rate",
        f"{taken['products']:.2f}",
        f"{result['products_over_gemm']:.2f}",
        "",
    )
    table.add_row(
        "intra+mamba: carried state against prefix",
        f"{taken['intra+mamba, prefix']:.2f}",
        f"{result['state_over_prefix']:.2f}",
        f"{STATE_GOAL:.2f}",
    )
    goal = f"{BF16_GOAL:.2f}" if result["has_bf16_units"] else "no bf16 units"
    table.add_row(
        "intra+mamba: bf16 against fp32", f"{taken['intra+mamba bf16']:.2f}", f"{result['bf16_over_fp32']:.2f}", goal
    )
    Console().print(table)


def main(settings: Settings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    result = measure(settings)
    show(result)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
