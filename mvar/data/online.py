"""Fresh crops: tokens of training images that are encoded when they are needed, of each image another crop an epoch.

Crop `c` of image `i` under a seed is the same that a token cache of that seed has in row `i * crops + c`
(`ImageSet.crop`), so both give the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvar.data.crops import ImageSet, to_float
from mvar.tokenizer.model import Tokenizer

CHUNK = 16  # images that are encoded at once; of large ones fewer (`Tokenizer.encode`)


@dataclass(frozen=True)
class FreshCrops:
    """Training images, and the frozen tokenizer that writes them.

    Args:
        images: the training images.
        tokenizer: in evaluation mode, on the device.
        seed: of the crops.
    """

    images: ImageSet
    tokenizer: Tokenizer
    seed: int

    def pixels(self, numbers: Sequence[int], epochs: Sequence[int]) -> np.ndarray:
        """Crops of images in epochs, uint8 `(B, ch, H, W)`.

        Raises:
            UserError: a file cannot be read; names it.
        """
        return np.stack([self.images.crop(i, epoch, self.seed) for i, epoch in zip(numbers, epochs, strict=True)])

    def first(self, numbers: Sequence[int]) -> np.ndarray:
        """Tokens `(N, L)` of images in the first epoch, a few at a time."""
        device = next(self.tokenizer.parameters()).device
        parts = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
        pixels = (torch.from_numpy(self.pixels(part, [0] * len(part))) for part in parts)
        return torch.cat([self.encode(part.to(device)).cpu() for part in pixels]).numpy()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens `(B, L)` int64 of pixels uint8 `(B, ch, H, W)` on the device."""
        return torch.cat([self.tokenizer.encode(to_float(part)) for part in pixels.split(CHUNK)])
