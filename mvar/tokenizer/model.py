"""The tokenizer: images to tokens of every scale and back (VAR's multi-scale VQ-VAE)."""

import torch
from torch import Tensor, nn

from mvar.config import TokenizerConfig
from mvar.tokenizer.autoencoder import Decoder, Encoder
from mvar.tokenizer.quantizer import ResidualQuantizer


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

        Raises:
            UserError: the images' side is not the one that `patch_sides` describe.
        """
        return self.quantize.encode(self.features(images))

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """A latent `(B, C, h, h)`, e.g. `quantize.latents(tokens)[-1]`, to images clamped to [-1, 1]."""
        return self.decoder(self.post_quant_conv(latent)).clamp(-1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Reconstruct for training.

        Returns:
            The reconstruction, shaped as `images` and not clamped; the scalar VQ loss; the codebook usage
            (`ResidualQuantizer.usage`).
        """
        latent, loss = self.quantize(self.features(images))
        return self.decoder(self.post_quant_conv(latent)), loss, self.quantize.usage()
