"""Sampling speed at VAR's 256 px schedule: carried state against the official way, and against the GEMM rate.

Run: `python -m benchmarks.sampling`. Everything is measured in turn within one process; the ratios are what counts.

- state / prefix: M-VAR's official code runs Mamba over all past tokens again at every scale; here its state is carried.
  All else is ours on both sides (the official code also gives the head the images without a class), so the ratio is of
  the state alone. That both draw the same tokens is made sure of before anything is timed.
- FLOP rate / GEMM rate: the sampler's analytic FLOPs (`sample_flops`: with guidance everything twice but the head,
  which is given guided features) over its median wall time, against a large matrix product's best
  (`benchmarks.machine.gemm_flops_per_s`).
- products / GEMM rate: the same for the sampler's linear layers alone, run again at their shapes without all else:
  most of them are of few rows (a scale's tokens), so that this, not 1, is what the FLOP rate can come near.
- bf16 / fp32: weights and activations in bf16; only processors with bf16 units can gain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.machine import begin, describe_machine, has_bf16_units, seconds, settings_json, with_gemm
from mvar.config import ModelConfig, SampleConfig, TokenizerConfig, TokenSpace
from mvar.cost import sample_flops
from mvar.errors import UserError
from mvar.files import write_json
from mvar.memory import keep_freed_memory
from mvar.registries import MIXERS as REGISTERED
from mvar.sampling import Generated, generate
from mvar.scales import PATCH_SIDES, Span
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

STATE_GOAL, RATE_GOAL, BF16_GOAL = 1.45, 0.80, 2.0


class PrefixRecompute(nn.Module):
    """A mixer without state, as the official sampler runs Mamba: past inputs are kept and mixed again each scale."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def prepared(self, *_: object) -> None:
        """Nothing is allocated before the first scale."""

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


def sampler(settings: Settings, model: ScaleTransformer, quantizer: ResidualQuantizer) -> Callable[[], Generated]:
    labels = torch.arange(settings.batch)
    config = SampleConfig(cfg_scale=1.5, top_k=900, top_p=0.96)
    return lambda: generate(model, quantizer, labels, range(settings.batch), config)


def same_draws(*samplers: Callable[[], Generated]) -> None:
    """Stop unless two samplers draw the same tokens: times of different work would compare nothing."""
    one, other = (sample().tokens for sample in samplers)
    if not torch.equal(one, other):
        count = f"{(one != other).sum()} of {one.numel()}"
        raise UserError(f"prefix: {count} tokens differ from those of the carried state; allowed: none")


class _Products(TorchFunctionMode):
    """Remembers every linear layer's product, whether a module makes it or a mixer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear:
            x, weight, bias = (*args, None)[:3]
            self.calls.append((torch.randn_like(x), weight, bias))
        return function(*args, **(kwargs or {}))


def products(sample: Callable[[], Any]) -> tuple[Callable[[], None], float]:
    """The linear layers of one call of a sampler, at the same shapes and in the same order; and their FLOPs."""
    with _Products() as found:
        sample()

    @torch.no_grad()
    def run() -> None:
        for x, weight, bias in found.calls:
            F.linear(x, weight, bias)

    return run, sum(2.0 * x.numel() * len(weight) for x, weight, _ in found.calls)


def measure(settings: Settings) -> dict[str, Any]:
    keep_freed_memory()  # as every run does
    runs, flops = {}, {}
    for pattern in [*sorted(REGISTERED.names()), "intra+mamba"]:
        model, quantizer = build(settings, pattern)
        runs[pattern] = sampler(settings, model, quantizer)
        flops[pattern] = settings.batch * sample_flops(model.config, model.space, guided=True)
        if pattern == "intra+mamba":
            runs["products"], product_flops = products(runs[pattern])
        if pattern == "intra+mamba":
            half, _ = build(settings, pattern)
            runs["intra+mamba bf16"] = sampler(settings, half.bfloat16(), quantizer)
    model, quantizer = build(settings, "intra+mamba")
    for block in model.blocks:
        block.mamba = PrefixRecompute(block.mamba)
    runs["intra+mamba, prefix"] = sampler(settings, model, quantizer)
    same_draws(runs["intra+mamba"], runs["intra+mamba, prefix"])
    taken, gemm = with_gemm(lambda: seconds(runs, settings.repeats))
    return {
        "machine": describe_machine(),
        "settings": settings_json(settings),
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
    write_json(settings.out, result)


if __name__ == "__main__":
    begin(main, Settings, __doc__)
