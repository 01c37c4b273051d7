"""The tokenizer's objective: reconstruction of randomly translated images, and the care of its codebook."""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from mvar.config import TokenizerConfig
from mvar.tokenizer.model import Tokenizer
from mvar.tokenizer.quantizer import Phi
from mvar.training.contract import DataOrder, Objective, Tensors

if TYPE_CHECKING:
    from mvar.data.crops import ImageSet


class TokenizerObjective(Objective):
    """Squared error of the reconstruction plus the quantizer's losses, on randomly translated images.

    The codebook starts from residuals of the first images, and codes that fall out of use are restarted from
    residuals: without that a small codebook collapses onto a few codes. Metrics: both losses, share of codes in use.
    """

    module: Tokenizer

    RESTART_EVERY = 20  # steps
    RESTART_UNTIL = 0.8  # of the steps: codes moved in the end would not settle
    RESTART_SHARE = 0.08  # of the mean code's hits, below which a code is moved
    PROBE_IMAGES = 256  # images whose residuals new codes are drawn from

    def __init__(self, tokenizer: Tokenizer, images: "ImageSet", config: TokenizerConfig) -> None:
        self.module, self.images, self.config = tokenizer, images, config
        self.order = DataOrder(len(images), config.train.batch_size, config.seed)
        quantizer, num_scales = tokenizer.quantize, config.schedule.num_scales
        used = [quantizer.phi(scale, num_scales) for scale in range(num_scales)]
        for phi in quantizer.quant_resi.modules():
            if isinstance(phi, Phi) and phi not in used:
                phi.requires_grad_(False)  # fewer scales than phis: it never gets a gradient, which DDP would wait for

    def batch(self, step: int, rng: np.random.Generator) -> Tensors:
        """Image numbers, seeds of their crops, and translations in pixels `(B, 2)` from 0 to 2 shift_px."""
        return self._draw(self.order.rows(step), rng)

    def load(self, rows: Tensors) -> Tensors:
        """Images `(B, channels, H, W)` in [-1, 1], cropped and translated; what moves in repeats the border."""
        from mvar.data.crops import to_float

        numbers, seeds, shifts = rows
        crops = [
            self.images.image(number, np.random.default_rng(seed))
            for number, seed in zip(numbers.tolist(), seeds.tolist(), strict=True)
        ]
        images = to_float(torch.from_numpy(np.stack(crops)))
        return (translate(images, shifts, self.config.shift_px),)

    def before_step(self, step: int, rng: np.random.Generator, optimizer: Optimizer) -> None:
        """Initialise the codebook before the first step; restart dead codes every few steps."""
        restart = 0 < step < self.RESTART_UNTIL * self.config.train.steps and step % self.RESTART_EVERY == 0
        if step and not restart:
            return
        quantizer = self.module.quantize
        weight = quantizer.embedding.weight
        # every process takes the same images, whatever its share of the batch
        numbers = rng.choice(len(self.images), min(self.PROBE_IMAGES, len(self.images)), replace=False)
        (images,) = self.load(self._draw(numbers, rng))
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        with torch.no_grad():
            features = self.module.features(images.to(weight.device))
        if step == 0:
            quantizer.init_codes(features, generator)
            return
        moved = quantizer.restart_dead_codes(features, generator, self.RESTART_SHARE)
        for moment in ("exp_avg", "exp_avg_sq"):  # they belong to the code that was there before
            optimizer.state[weight][moment][moved] = 0

    def loss(self, batch: Tensors, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error per pixel of images in [-1, 1], plus codebook and commitment loss."""
        (images,) = batch
        reconstruction, vq_loss, usage = self.module(images)
        error = F.mse_loss(reconstruction, images)
        metrics = {"train/loss_reconstruction": error.detach(), "train/loss_vq": vq_loss.detach()}
        return error + vq_loss, metrics | {f"train/{name}": value for name, value in usage.items()}

    def _draw(self, numbers: np.ndarray, rng: np.random.Generator) -> Tensors:
        seeds = rng.integers(2**63, size=len(numbers))
        shifts = rng.integers(0, 2 * self.config.shift_px + 1, size=(len(numbers), 2))
        return torch.from_numpy(numbers), torch.from_numpy(seeds), torch.from_numpy(shifts)


def translate(images: Tensor, shifts: Tensor, limit: int) -> Tensor:
    """Move each image `(B, channels, H, W)` by `limit - shifts` pixels down and right; the border is repeated.

    Args:
        images: floats.
        shifts: `(B, 2)` int64 from 0 to `2 * limit`.
        limit: largest move in pixels.
    """
    if not limit:
        return images
    height, width = images.shape[-2:]
    padded = F.pad(images, (limit,) * 4, mode="replicate")
    rows = shifts[:, :1] + torch.arange(height)
    columns = shifts[:, 1:] + torch.arange(width)
    batch = torch.arange(len(images))[:, None, None]
    return padded.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
