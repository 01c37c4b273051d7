"""Sampling and a training step beside the official code of VAR and M-VAR, on the CPU.

Run: `python -m benchmarks.official --official VAR --official-mvar MVAR --threads 1`, with checkouts of
github.com/FoundationVision/VAR and github.com/OliverRensu/MVAR. Nothing of them is in this repository.

Both sides are measured in turn within one process, by processor time; the ratios are what counts. They hold the same
weights: equal parameter counts and equal logits are made sure of before anything is timed. Where the official code
wants a GPU it gets torch's attention in place of flash-attn, scale by scale, and our scan in place of mamba-ssm. The
image decoder is left out on both sides, and so is stochastic depth. A training step: logits, loss, gradients, clipping,
fused AdamW.

Where an aim is missed, the share of our time that matrix products take at the rate of a large one (analytic FLOPs,
`benchmarks.machine.gemm_flops_per_s`) is printed beside it.
"""

import contextlib
import importlib
import io
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.machine import begin, describe_machine, seconds, with_gemm
from mvar.config import ModelConfig, RuntimeConfig, SampleConfig, TokenizerConfig, TokenSpace
from mvar.cost import num_params, sample_flops, train_flops
from mvar.errors import UserError
from mvar.files import write_json
from mvar.memory import keep_freed_memory
from mvar.mixers.mamba import Mamba2
from mvar.sampling import generate
from mvar.scales import PATCH_SIDES, ScaleSchedule
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

PATTERNS = {"VAR": "global", "M-VAR": "intra+mamba"}
AIMS = {("VAR", "sampling"): 1.35, ("M-VAR", "sampling"): 1.9, ("VAR", "training"): 1.15, ("M-VAR", "training"): 1.2}
THEIRS = ("models", "utils", "dist", "trainer")  # names of modules in both checkouts
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "patch_nums")  # derived from the schedule on our side
SAMPLING = {"cfg": 1.5, "top_k": 900, "top_p": 0.96}
V, C, CLASSES = 4096, 32, 1000


@dataclass
class Settings:
    """Checkouts, and the size of what is measured."""

    official: Path  # of VAR
    official_mvar: Path | None = None  # of M-VAR; none: VAR alone
    depth: int = 8
    width: int = 512
    batch: int = 4
    resolution: str = "256"
    repeats: int = 5
    threads: int = 0  # 0: torch's own choice
    out: Path = Path("benchmarks/results/official.json")

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales."""
        return ScaleSchedule(PATCH_SIDES[self.resolution])


def check(settings: Settings) -> dict[str, Path]:
    """The folders of the checkouts that were named.

    Raises:
        UserError: one that is no such checkout, a resolution that is unknown.
    """
    if settings.resolution not in PATCH_SIDES:
        raise UserError(f"resolution: {settings.resolution!r}; allowed: {', '.join(PATCH_SIDES)}")
    folders = {"VAR": settings.official}
    if settings.official_mvar:
        folders["M-VAR"] = settings.official_mvar
    for name, folder in folders.items():
        file = folder / "models" / f"{name.replace('-', '').lower()}.py"
        if not file.is_file():
            raise UserError(f"official: {file} is not there; allowed: the folder of a checkout of the official {name}")
    return folders


# The official side ---------------------------------------------------------------------------------------------------


def stand_ins(settings: Settings, name: str) -> dict[str, types.ModuleType]:
    """What the official code imports and is not there, or wants a GPU: what is needed of it, in torch."""
    hub = types.ModuleType("huggingface_hub")
    vars(hub)["PyTorchModelHubMixin"] = type("PyTorchModelHubMixin", (), {})
    if name == "VAR":
        return {"huggingface_hub": hub}
    lengths = list(settings.schedule.lengths)

    def whole(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, **_: Any) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2).contiguous()

    def by_scale(q: Tensor, k: Tensor, v: Tensor, *_: Any, softmax_scale: float) -> Tensor:
        parts = zip(*(t.unflatten(0, (-1, sum(lengths))).split(lengths, 1) for t in (q, k, v)), strict=True)
        return torch.cat([whole(*part, softmax_scale=softmax_scale) for part in parts], 1).flatten(0, 1)

    flash, ssm = types.ModuleType("flash_attn"), types.ModuleType("mamba_ssm")
    vars(flash).update(flash_attn_func=whole, flash_attn_varlen_func=by_scale, flash_attn_qkvpacked_func=None)
    vars(ssm)["Mamba2"] = OfficialMamba.of(settings.schedule)
    kernels = {"flash_attn": flash, "mamba_ssm": ssm}
    there = [found for found in kernels if torch.cuda.is_available() and find_spec(found)]
    return {"huggingface_hub": hub} | {found: module for found, module in kernels.items() if found not in there}


class OfficialMamba(Mamba2):
    """Our mixer under mamba-ssm's signature: of a prefix of the scales, without a state."""

    schedule: ScaleSchedule

    @classmethod
    def of(cls, schedule: ScaleSchedule) -> "type[OfficialMamba]":
        """For a schedule."""
        return type("Mamba2", (cls,), {"schedule": schedule})

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int) -> None:
        model = ModelConfig(width=d_model, num_heads=1)
        settings = model.mamba.model_copy(update={"d_state": d_state, "d_conv": d_conv, "expand": expand})
        super().__init__(model, settings, RuntimeConfig())

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  as theirs
        scales = self.schedule.offsets.index(x.shape[1])
        prefix = ScaleSchedule(self.schedule.sides[:scales])  # nothing follows, so no state is made
        return super().forward(x, prefix.span())[0]


@contextlib.contextmanager
def importable(folder: Path, modules: dict[str, types.ModuleType]) -> Iterator[None]:
    """While a checkout's modules can be imported; both checkouts use the same names."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.path.insert(0, str(folder))
    sys.modules.update(modules)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] in THEIRS]:
            del sys.modules[name]
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def official(settings: Settings, name: str, folder: Path) -> nn.Module:
    """The official model, its image decoder left out."""
    with importable(folder, stand_ins(settings, name)), contextlib.redirect_stdout(io.StringIO()):
        kind = getattr(importlib.import_module(f"models.{name.replace('-', '').lower()}"), name.replace("-", ""))
        sides = settings.schedule.sides
        decoder = importlib.import_module("models.vqvae").VQVAE(V, C, ch=32, v_patch_nums=sides)
        decoder.fhat_to_img = lambda f_hat: f_hat
        size = {"depth": settings.depth, "embed_dim": settings.width, "num_heads": max(1, settings.width // 64)}
        model = kind(decoder, CLASSES, **size, attn_l2_norm=True, cond_drop_rate=0.0, patch_nums=sides)
        model.init_weights(init_adaln=0.5, init_adaln_gamma=1e-5, init_head=0.02, init_std=-1)
    for parameter in model.parameters():  # so that every part has an effect
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


# Both sides ----------------------------------------------------------------------------------------------------------


def ours(settings: Settings, name: str, theirs: nn.Module) -> ScaleTransformer:
    """Our model with the official one's weights.

    Raises:
        UserError: another number of parameters, or other logits.
    """
    heads = max(1, settings.width // 64)
    config = ModelConfig(
        depth=settings.depth, width=settings.width, num_heads=heads, pattern=PATTERNS[name], attn_l2_norm=True
    )
    space = TokenSpace(settings.schedule.sides, V, C, CLASSES)
    counts = sum(p.numel() for p in theirs.parameters()), num_params(config, space)
    if counts[0] != counts[1]:
        raise UserError(f"official: {name} has {counts[0]:,} parameters, ours {counts[1]:,}; allowed: as many")
    model = ScaleTransformer(config, space)
    model.load_state_dict({n: t for n, t in theirs.state_dict().items() if not n.endswith(BUFFERS)})
    labels, inputs, _ = batch(settings)
    with torch.no_grad():
        wanted, found = theirs.train()(labels, inputs), model.train()(labels, inputs)[0]
    error = ((found - wanted).abs().max() / wanted.abs().max()).item()
    if not error < 1e-3:
        raise UserError(f"official: logits of {name} differ from ours by {error:.1e}; allowed: less than 1e-3")
    return model


def batch(settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, inputs and tokens of a training step."""
    generator, schedule = torch.Generator().manual_seed(0), settings.schedule
    shape = settings.batch, schedule.num_tokens - schedule.lengths[0], C
    tokens = torch.randint(V, (settings.batch, schedule.num_tokens), generator=generator)
    return torch.arange(settings.batch), torch.randn(shape, generator=generator), tokens


def trainer(settings: Settings, model: nn.Module, logits: Callable[..., Tensor]) -> Callable[[], None]:
    """A training step."""
    labels, inputs, tokens = batch(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        model.train()
        F.cross_entropy(logits(labels, inputs).flatten(0, 1), tokens.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def runs_of(settings: Settings, name: str, folder: Path) -> dict[tuple[str, str, str], Callable[[], Any]]:
    """What is timed, by model, work and side."""
    theirs: Any = official(settings, name, folder)
    model = ours(settings, name, theirs)
    tokenizer = TokenizerConfig(patch_sides=settings.schedule.sides, vocab_size=V, code_channels=C)
    quantizer, labels = ResidualQuantizer(tokenizer).eval(), torch.arange(settings.batch)
    sample = SampleConfig(cfg_scale=SAMPLING["cfg"], top_k=SAMPLING["top_k"], top_p=SAMPLING["top_p"])

    def draw_theirs() -> None:
        theirs.eval().autoregressive_infer_cfg(settings.batch, labels, g_seed=0, **SAMPLING)

    def draw_ours() -> None:
        generate(model.eval(), quantizer, labels, range(settings.batch), sample)

    return {
        (name, "sampling", "official"): draw_theirs,
        (name, "sampling", "ours"): draw_ours,
        (name, "training", "official"): trainer(settings, theirs, theirs),
        (name, "training", "ours"): trainer(settings, model, lambda *args: model(*args)[0]),
    }


def measure(settings: Settings) -> dict[str, Any]:
    """Times, ratios and shares."""
    keep_freed_memory()  # as every run does
    torch.manual_seed(0)
    runs = {}
    for name, folder in check(settings).items():
        runs |= runs_of(settings, name, folder)
    clock = time.process_time  # of both: what else the machine does is in neither
    taken, gemm = with_gemm(lambda: seconds(runs, settings.repeats, clock), clock)
    space, rows = TokenSpace(settings.schedule.sides, V, C, CLASSES), []
    for name, work in dict.fromkeys((name, work) for name, work, _ in runs):
        config = ModelConfig(depth=settings.depth, width=settings.width, pattern=PATTERNS[name], attn_l2_norm=True)
        flops = (
            settings.batch * sample_flops(config, space, guided=True)
            if work == "sampling"
            else train_flops(config, space, settings.batch)
        )
        own = taken[name, work, "ours"]
        rows.append(
            {
                "model": name,
                "work": work,
                "official_s": taken[name, work, "official"],
                "ours_s": own,
                "ratio": taken[name, work, "official"] / own,
                "aim": AIMS[name, work],
                "products_share": flops / gemm / own,
            }
        )
    return {
        "machine": describe_machine(),
        "settings": {k: str(v) for k, v in vars(settings).items() if k not in ("official", "official_mvar", "out")},
        "gemm_gflops_per_s": gemm / 1e9,
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    """The table."""
    table = Table(title=f"Beside the official code, {result['machine']['cpu']}, {result['machine']['threads']} threads")
    for column in ("model", "work", "official s", "ours s", "ratio", "aim", "of ours: products"):
        table.add_column(column, justify="left" if column in ("model", "work") else "right")
    for row in result["rows"]:
        share = "" if row["ratio"] >= row["aim"] else f"{row['products_share']:.0%}"
        times = (f"{row[key]:.2f}" for key in ("official_s", "ours_s", "ratio", "aim"))
        table.add_row(row["model"], row["work"], *times, share)
    Console().print(table)


def main(settings: Settings) -> None:
    """Measure, print and keep."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of their autocast
        result = measure(settings)
    show(result)
    write_json(settings.out, result)


if __name__ == "__main__":
    begin(main, Settings, __doc__)
