"""The two objectives of the library: next-scale prediction, and the tokenizer's reconstruction."""

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from mvar.config import TokenizerConfig, TrainConfig
from mvar.tokenizer.model import Tokenizer
from mvar.tokenizer.quantizer import Phi, ResidualQuantizer
from mvar.training.contract import DataOrder, Objective, Rows
from mvar.transformer import ScaleTransformer

if TYPE_CHECKING:
    from mvar.data.crops import ImageSet
    from mvar.data.tokens import TokenCache

INPUTS_LIMIT = 2**28  # bytes of teacher-forcing inputs that are computed once and kept; above, they are made each step
INPUTS_CHUNK = 512  # images at once while they are computed


class GeneratorObjective(Objective):
    """Cross-entropy of every token given the coarser scales and the class, each token weighted 1 / L (official code).

    The class is replaced by "no class" with probability `label_dropout`, which is what guidance needs. Metrics:
    accuracy, and loss and accuracy of each scale.
    """

    def __init__(
        self,
        model: ScaleTransformer,
        quantizer: ResidualQuantizer,
        cache: "TokenCache",
        train: TrainConfig,
        seed: int,
    ) -> None:
        self.module, self.quantizer, self.cache, self.train = model, quantizer, cache, train
        self.labels = np.asarray(cache.labels, np.int64)
        self.order = DataOrder(len(cache.tokens), train.batch_size, seed)
        self.lengths = list(model.schedule.lengths)
        num_bytes = 4 * model.space.code_channels * (model.schedule.num_tokens - self.lengths[0]) * len(cache.tokens)
        self.inputs = self._all_inputs() if num_bytes <= INPUTS_LIMIT else None

    def batch(self, step: int, rng: np.random.Generator) -> Rows:
        """Labels `(B,)` with dropped ones replaced, and numbers `(B,)` of the token sequences."""
        numbers = self.order.rows(step)
        dropped = rng.random(len(numbers)) < self.train.label_dropout
        labels = np.where(dropped, self.module.space.num_classes, self.labels[numbers])
        return torch.from_numpy(labels), torch.from_numpy(numbers)

    def load(self, rows: Rows) -> Rows:
        """Labels, tokens `(B, L)` and, where they are kept, inputs `(B, L - n_0, C)`."""
        labels, numbers = rows
        tokens = torch.from_numpy(self.cache.tokens[numbers.numpy()].astype(np.int64))
        return (labels, tokens) if self.inputs is None else (labels, tokens, self.inputs[numbers])

    def loss(self, batch: Rows, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in nats, averaged over tokens and images, with label smoothing."""
        labels, tokens, *rest = batch
        inputs = rest[0] if rest else self.quantizer.to(tokens.device).inputs(tokens)
        logits, _ = self.module(labels, inputs)
        losses = F.cross_entropy(
            logits.flatten(0, 1), tokens.flatten(), label_smoothing=self.train.label_smoothing, reduction="none"
        )
        metrics = self._metrics(losses.detach(), logits.detach(), tokens) if self.wants_metrics else {}
        return losses.mean(), metrics

    def _metrics(self, losses: Tensor, logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        per_token = losses.view(tokens.shape).mean(0)
        correct = (logits.argmax(-1) == tokens).to(losses.dtype).mean(0)
        metrics = {"train/accuracy": correct.mean()}
        for k, (part, hit) in enumerate(zip(per_token.split(self.lengths), correct.split(self.lengths), strict=True)):
            metrics[f"train/loss_scale_{k:02d}"] = part.mean()
            metrics[f"train/accuracy_scale_{k:02d}"] = hit.mean()
        return metrics

    def _all_inputs(self) -> Tensor:
        device = self.quantizer.embedding.weight.device
        parts = []
        for start in range(0, len(self.cache.tokens), INPUTS_CHUNK):
            tokens = torch.from_numpy(self.cache.tokens[start : start + INPUTS_CHUNK].astype(np.int64))
            parts.append(self.quantizer.inputs(tokens.to(device)).cpu())
        return torch.cat(parts)


class TokenizerObjective(Objective):
    """Squared error of the reconstruction plus the quantizer's losses, on randomly translated images.

    The codebook starts from residuals of the first images, and codes that fall out of use are restarted from
    residuals: without that a small codebook collapses onto a few codes. Metrics: both losses, share of codes in use.
    """

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

    def batch(self, step: int, rng: np.random.Generator) -> Rows:
        """Image numbers, seeds of their crops, and translations in pixels `(B, 2)` from 0 to 2 shift_px."""
        return self._draw(self.order.rows(step), rng)

    def load(self, rows: Rows) -> Rows:
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

    def loss(self, batch: Rows, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error per pixel of images in [-1, 1], plus codebook and commitment loss."""
        (images,) = batch
        reconstruction, vq_loss, usage = self.module(images)
        error = F.mse_loss(reconstruction, images)
        metrics = {"train/loss_reconstruction": error.detach(), "train/loss_vq": vq_loss.detach()}
        return error + vq_loss, metrics | {f"train/{name}": value for name, value in usage.items()}

    def _draw(self, numbers: np.ndarray, rng: np.random.Generator) -> Rows:
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
