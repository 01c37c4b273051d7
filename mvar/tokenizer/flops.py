"""What a tokenizer costs, counted on tensors without values."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from mvar.config import TokenizerConfig
from mvar.tokenizer.model import Tokenizer


def coding_flops(config: TokenizerConfig, in_channels: int) -> tuple[int, int]:
    """FLOPs of encoding and of decoding one image; the search for the nearest codes is left out."""
    # pydantic gives frozen models a hash, its stub knows that only of models with frozen=True in the class line.
    return _coding_flops(config, in_channels)  # pyright: ignore[reportArgumentType]  see above


@cache  # by what it depends on: the runs of a sweep share it
def _coding_flops(config: TokenizerConfig, in_channels: int) -> tuple[int, int]:
    side = config.schedule.sides[-1] * config.downsample
    with torch.device("meta"):
        tokenizer = Tokenizer(config, in_channels)
        images = torch.empty(1, in_channels, side, side)
        latent = tokenizer.features(images)
    return counted(partial(tokenizer.features, images)), counted(partial(tokenizer.decode, latent))


def counted(act: Callable[[], Tensor | tuple[Tensor, Tensor]]) -> int:
    """FLOPs of what is done, of matrix products and convolutions (a multiply-add is 2)."""
    from torch.utils.flop_counter import FlopCounterMode  # as slow to import as the rest together

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        act()
    return counter.get_total_flops()
