"""A training step: its share of the card's rate (MFU), and its peak of memory against the plan's."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.replay import models
from benchmarks.gpu.settings import HALF, PATTERNS, Settings, timed
from mvar.config import RunConfig
from mvar.cost import train_flops
from mvar.runs.clock import gemm_rate
from mvar.runs.gpu_plan import GB
from mvar.training.cards import rate_of
from mvar.training.footprint import footprint
from mvar.transformer import ScaleTransformer


class Step:
    """One training step after another: logits, loss, gradients, clipping, fused AdamW."""

    def __init__(self, model: ScaleTransformer, config: RunConfig, batch: int, device: torch.device) -> None:
        self.model, self.device = model.train(), device
        self.half = HALF.get(config.train.precision)
        space, schedule = config.token_space, config.token_space.schedule
        shape = batch, schedule.num_tokens - schedule.lengths[0], space.code_channels
        self.labels = torch.arange(batch, device=device) % space.num_classes
        self.inputs = torch.randn(shape, device=device)
        self.tokens = torch.randint(space.vocab_size, (batch, schedule.num_tokens), device=device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)

    def __call__(self) -> None:
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            logits, _ = self.model(self.labels, self.inputs)
            F.cross_entropy(logits.flatten(0, 1), self.tokens.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row a model. What a CPU cannot tell, its peak of memory and a card's rate, is None."""
    size = 2 if settings.tiny else settings.train_batch
    on_gpu = settings.device.type == "cuda"
    for name in PATTERNS:
        config, (model, _) = settings.config(name), models(settings, name)
        step = Step(model, config, size, settings.device)
        if on_gpu:
            step()
            torch.cuda.reset_peak_memory_stats()
        taken = timed(settings, {"step": step})["step"]
        peak = torch.cuda.max_memory_allocated() / GB if on_gpu else None
        planned = footprint(config, size, "none", "ddp", 1).peak / GB
        flops = train_flops(config.model, config.token_space, size) / taken
        rate = rate_of(settings.device, config.train.precision, config.runtime.tf32)
        product = gemm_rate(settings.device.type, config.train.precision)
        yield {
            "model": name,
            "batch": size,
            "step_s": taken,
            "images_per_s": size / taken,
            "mfu": rate and flops / rate,
            "of_a_large_product": flops / product,
            "planned_gb": planned,
            "peak_gb": peak,
            "peak_over_plan": peak and peak / planned,
        }
        del model, step
        if on_gpu:
            torch.cuda.empty_cache()
