"""What is measured, at full size or tiny, and on what."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import seconds
from mvar.config import RunConfig, override
from mvar.kernels.recompute import Kept
from mvar.presets import PRESETS

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PATTERNS = {"VAR": "global", "M-VAR": "intra+mamba"}
TINY = {
    "tokenizer.patch_sides": (1, 2, 3), "tokenizer.vocab_size": 64, "tokenizer.width": 8,
    "tokenizer.channel_multipliers": (1, 2), "tokenizer.checkpoint": None, "tokenizer.code_channels": 8,
    "model.depth": 2, "model.width": 32, "model.num_heads": 2, "model.mamba.headdim": 16, "model.mamba.d_state": 8,
    "data.image_size": 6, "data.num_classes": 10, "train.batch_size": 4,
}  # fmt: skip


@dataclass
class Settings:
    """Size of what is measured; the defaults are the papers' depth-16 models at 256 px."""

    tiny: bool = False  # --tiny: a rehearsal of every part, at a size that means nothing, where there is no GPU too
    preset: str = "imagenet256-d16"
    batches: tuple[int, ...] = (1, 8, 64)  # of sampling
    train_batch: int = 32  # images of a training step
    precision: str = "bf16"  # of sampling and training
    repeats: int = 5
    official: Path | None = None  # a checkout of the official VAR code
    official_mvar: Path | None = None  # and of the official M-VAR code
    out: Path = Path("benchmarks/results")  # a folder

    @property
    def device(self) -> torch.device:
        """A GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def config(self, name: str, kept: Kept = "none") -> RunConfig:
        """The run of a model of `PATTERNS`; `kept`: what its layers keep for the backward pass."""
        found = override(PRESETS[self.preset], {"model.pattern": PATTERNS[name]})
        fields = {f"{section}.precision": self.precision for section in ("train", "sample")}
        fields |= {"runtime.checkpoint_activations": kept}
        fields |= {"sample.cfg_scale": 1.5, "sample.top_k": 900, "sample.top_p": 0.96}
        return override(found, fields | (TINY if self.tiny else {}))


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(settings: Settings, runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, in turn, the device's work included."""

    def waited(run: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            run()
            wait(settings.device)

        return call

    return seconds({name: waited(run) for name, run in runs.items()}, settings.repeats)
