"""Tokens in half precision against those in fp32: as many differ as their logits say.

Both precisions draw with the same random number of each token, so a token differs where that number falls between the
two cumulative distributions. That probability is known from the logits, and the numbers are independent: how many
tokens differ is a sum of independent draws, and lies within a few standard deviations of what is expected. Coarser
scales are given, so that both see the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.replay import models
from benchmarks.gpu.settings import HALF, PATTERNS, Settings
from mvar.config import SampleConfig, override
from mvar.sampling import generate
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

PLAIN = SampleConfig(cfg_scale=1.5, top_p=0)  # no filter: a token that drops out of it jumps
SDS = 5.0  # by which a count may be off


@dataclass(frozen=True)
class Agreement:
    """Of tokens in half precision with those in fp32."""

    tokens: int
    differ: int
    expected: float  # that differ, by the logits
    sd: float  # of that number

    @property
    def holds(self) -> bool:
        """Whether as many differ as expected."""
        return abs(self.differ - self.expected) <= SDS * self.sd + 1


def agreement(
    model: ScaleTransformer, quantizer: ResidualQuantizer, labels: Tensor, seeds: Sequence[Any], precision: str
) -> Agreement:
    """Draw an image a label in fp32, then each scale of it in half precision.

    Args:
        model, quantizer: in fp32, on one device.
        labels: `(B,)`.
        seeds: of each image.
        precision: `bf16` or `fp16`.
    """
    plain: dict[int, Tensor] = {}
    whole = generate(model, quantizer, labels, seeds, PLAIN, on_logits=partial(_keep, plain)).tokens
    half = override(PLAIN, {"precision": precision})
    differ, expected, variance = 0, 0.0, 0.0
    for scale, span in enumerate(model.schedule.steps()):
        found: dict[int, Tensor] = {}
        prefix = whole[:, : span.start] if scale else None
        tokens = generate(model, quantizer, labels, seeds, half, on_logits=partial(_keep, found), prefix=prefix).tokens
        differ += int((tokens != whole)[:, span.start : span.stop].sum())
        shared = _shared(plain[scale], found[scale])
        expected += float((1 - shared).sum())
        variance += float((shared * (1 - shared)).sum())
    return Agreement(whole.numel(), differ, expected, variance**0.5)


def _keep(kept: dict[int, Tensor], scale: int, logits: Tensor) -> None:
    kept[scale] = logits.clone()


def _shared(one: Tensor, other: Tensor) -> Tensor:
    """Probability `(B, n)` that logits `(B, n, V)` of two precisions give the same token, by one number in [0, 1)."""
    first, second = (logits.double().softmax(-1).cumsum(-1) for logits in (one, other))
    lower, upper = (F.pad(ends[..., :-1], (1, 0)) for ends in (first, second))
    return (torch.minimum(first, second) - torch.maximum(lower, upper)).clamp_min(0).sum(-1)


def rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row a model and half precision."""
    size = max(settings.batches[:2])
    for name in PATTERNS:
        model, quantizer = models(settings, name)
        labels = torch.arange(size, device=settings.device) % model.space.num_classes
        for precision in HALF:
            found = agreement(model, quantizer, labels, range(size), precision)
            yield {"model": name, "precision": precision, "images": size, **vars(found), "holds": found.holds}
