"""The tokenizer: images to tokens of every scale and back (VAR's multi-scale VQ-VAE)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mvar.config import TokenizerConfig
from mvar.tokenizer.autoencoder import Decoder, Encoder
from mvar.tokenizer.quantizer import ResidualQuantizer

MOST_PIXELS = 1 << 19  # 8 images of 256 px: VAR's encoder then holds 1.7 GB, and a decoder's layer 335 MB


def at_once(image_shape: tuple[int, ...], most: int) -> int:
    """How many images `(..., H, W)` a network of images takes at once: `most`, fewer where they are large."""
    return max(1, min(most, MOST_PIXELS // (image_shape[-2] * image_shape[-1])))


class Tokenizer(nn.Module):
    """Multi-scale residual VQ-VAE; state-dict keys are those of the official `VQVAE`.

    Shapes: `B` batch, `L` tokens of all scales, `C` code channels, `(H, W)` pixels, `h` side of the finest token map.
    Images are floats in [-1, 1].
    """

    def __init__(self, config: TokenizerConfig, in_channels: int) -> None:
        super().__init__()
        self.config, self.in_channels = config, in_channels
        self.schedule = config.schedule
        channels = config.code_channels
        self.encoder = Encoder(config, in_channels)
        self.decoder = Decoder(config, in_channels)
        self.quantize = ResidualQuantizer(config)
        self.quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def features(self, images: Tensor) -> Tensor:
        """What is quantised: images `(B, channels, H, W)` to `(B, C, h, h)`."""
        return self.quant_conv(self.encoder(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images `(B, channels, H, W)` to token ids `(B, L)` int64, scales concatenated coarse to fine.

        However many there are, what is held on the way is that of a few (`at_once`); as in `decode`.

        Raises:
            UserError: the images' side is not the one that `patch_sides` describe.
        """
        return _by_few(lambda few: self.quantize.encode(self.features(few)), images, images.shape)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """A latent `(B, C, h, h)`, e.g. `quantize.latents(tokens)[-1]`, to images clamped to [-1, 1]."""
        sides = (side * self.config.downsample for side in latent.shape[-2:])
        return _by_few(lambda few: self.decoder(self.post_quant_conv(few)).clamp(-1, 1), latent, tuple(sides))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruct for training.

        Returns:
            The reconstruction, shaped as `images` and not clamped; the scalar VQ loss; the codebook usage
            (`ResidualQuantizer.usage`).
        """
        latent, loss = self.quantize(self.features(images))
        return self.decoder(self.post_quant_conv(latent)), loss, self.quantize.usage()


def _by_few(work: Callable[[Tensor], Tensor], batch: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    """What is made of a batch, a few of its rows at a time."""
    few = at_once(image_shape, len(batch))
    return work(batch) if few >= len(batch) else torch.cat([work(part) for part in batch.split(few)])
