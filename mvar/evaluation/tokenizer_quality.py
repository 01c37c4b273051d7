"""What a tokenizer is worth: how near its reconstructions come, and how much of its codebook they use.

Shapes: N images, S scales, V codes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mvar.data.crops import to_float, to_uint8
from mvar.evaluation import extraction
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.fidelity import distance_of
from mvar.evaluation.floors import BATCH_SIZE, psnr, reconstruct
from mvar.evaluation.images import Images, check_same_size, in_turn
from mvar.progress import Progress
from mvar.tokenizer.model import Tokenizer, at_once

VERSION = 1  # of all that is measured here
# Of SSIM (Wang et al. 2004): the window's side and deviation in px, and the constants, of grey levels up to 255.
WINDOW, SIGMA = 11, 1.5
STABLE = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)


@dataclass(frozen=True)
class TokenizerQuality:
    """Of a set of images and their reconstructions.

    `rfid` is None without a feature extractor. `entropy_bits` are of the frequencies of codes, at most the binary
    logarithm of the codebook's size, and of the number of tokens that were seen.
    """

    num_images: int
    rfid: float | None
    psnr_db: float
    ssim: float
    vocab_size: int
    codes_used: int
    entropy_bits: float
    sides: list[int]
    codes_used_by_scale: list[int]
    entropy_bits_by_scale: list[float]


def tokenizer_quality(
    tokenizer: Tokenizer, images: Any, extractor: Extractor | None = None, progress: Progress | None = None
) -> TokenizerQuality:
    """Reconstruct a set of images and measure what comes of it.

    Args:
        tokenizer: encodes and decodes.
        images: uint8 `(N, ch, H, W)` or an image set.
        extractor: for rFID, the FID between the reconstructions and the same images; None: there is none.
        progress: called with images done and in all, over all passes; what it raises ends the work.

    Raises:
        UserError: images that are not uint8, or of another size than the tokenizer's.
    """
    images = Images(images, "images")
    count = len(images)
    coding, comparing, likening, *extracting = in_turn(progress, [count] * (5 if extractor else 3))
    pixels, usage = reconstruct(tokenizer, images, coding)
    shown = Images(pixels, "reconstructed images")
    rfid = None
    if extractor:
        both = zip((shown, images), extracting, strict=True)
        rfid = distance_of(
            *(extraction.statistics_of(extractor, each.batches(extraction.BATCH_SIZE, p))[0] for each, p in both)
        )
    total = usage.sum(0)
    return TokenizerQuality(
        num_images=count,
        rfid=rfid,
        psnr_db=psnr(shown, images, comparing),
        ssim=ssim(shown, images, likening),
        vocab_size=len(total),
        codes_used=int((total > 0).sum()),
        entropy_bits=entropy(total),
        sides=list(tokenizer.schedule.sides),
        codes_used_by_scale=[int(number) for number in (usage > 0).sum(1)],
        entropy_bits_by_scale=[entropy(row) for row in usage],
    )


def entropy(counts: np.ndarray) -> float:
    """In bits, of the distribution that counts `(V,)` are drawn from, by frequencies: too low where they are few."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no -0.0


def ssim(images: Any, reference: Any, progress: Progress | None = None) -> float:
    """Structural similarity (Wang et al. 2004), a mean over images, channels and places; 1 for equal images.

    Gaussian window of 11 px and deviation 1.5, inside the image only, float64. In images of less than 11 px a side the
    window is the largest odd one that fits.

    Args:
        images: uint8 `(N, ch, H, W)` or an image set.
        reference: as many, of the same size.
        progress: called with images done and in all.
    """
    images, reference = Images(images, "images"), Images(reference, "reference images")
    check_same_size(images, reference)
    total, size = 0.0, at_once(images.image_shape, BATCH_SIZE)
    for batch, wanted in zip(images.batches(size, progress), reference.batches(size), strict=True):
        total += _similarity(batch.double(), wanted.double()).sum().item()
    return total / len(images)


def _similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of each pair of images `(B, ch, H, W)`: `(B,)`."""
    line = _window(min(WINDOW, *first.shape[-2:]))

    def local(values: Tensor) -> Tensor:
        """Weighted means of all places: the window is a product of two lines, which are much less work than it."""
        found = functional.conv2d(values.flatten(0, 1)[:, None], line[..., None])
        return functional.conv2d(found, line[:, None]).reshape(*values.shape[:2], -1)

    a, b = local(first), local(second)
    squares_a, squares_b, products = local(first**2) - a**2, local(second**2) - b**2, local(first * second) - a * b
    luminance = (2 * a * b + STABLE[0]) / (a**2 + b**2 + STABLE[0])
    return (luminance * (2 * products + STABLE[1]) / (squares_a + squares_b + STABLE[1])).mean((1, 2))


def _window(side: int) -> Tensor:
    """A Gaussian that sums to 1, `(1, 1, side)`, of the largest odd side."""
    side -= 1 - side % 2
    places = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-places.square() / (2 * SIGMA**2))
    return (line / line.sum())[None, None]


@torch.no_grad()
def after_each_scale(tokenizer: Tokenizer, images: Tensor) -> np.ndarray:
    """Images `(B, ch, H, W)` uint8 beside what is decoded after each scale, coarse to fine.

    Returns:
        uint8 `(B, 1 + S, H, W, ch)`, the image itself first.
    """
    device, rows = next(tokenizer.parameters()).device, []
    for batch in images.split(at_once(tuple(images.shape[1:]), BATCH_SIZE)):
        latents = tokenizer.quantize.latents(tokenizer.encode(to_float(batch).to(device)))
        columns = [batch, *(to_uint8(tokenizer.decode(latent)).cpu() for latent in latents)]
        rows.append(torch.stack(columns, 1).movedim(2, -1))
    return torch.cat(rows).numpy()
