"""The convolutional encoder and decoder around the quantizer (the ResNet autoencoder of VQGAN, as VAR uses it).

Attribute names are those of the official code, so that its checkpoints load. Shapes: `B` batch, `C` code channels,
`(H, W)` pixels, `h = H / downsample`.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from mvar.config import TokenizerConfig


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with eps 1e-6 and 32 groups; where 32 does not divide `channels`, the largest divisor below 32."""
    groups = max(g for g in range(1, min(32, channels) + 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, and a residual (1x1 convolution if channels change)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        changes = in_channels != out_channels
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the side by a 3x3 convolution of stride 2, padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Middle(nn.Module):
    """The bottleneck: residual block, attention if asked for, residual block."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if asked for, then a change of resolution if any."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttentionBlock(out_channels) for _ in range(num_blocks if attention else 0))
        # The keys of checkpoints: a stage has one of them or none.
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        resize = self.downsample or self.upsample
        return resize(x) if resize else x


class Encoder(nn.Module):
    """Images `(B, channels, H, W)` to features `(B, C, h, w)`; every stage but the last halves the resolution."""

    def __init__(self, config: TokenizerConfig, in_channels: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.channel_multipliers]
        self.conv_in = nn.Conv2d(in_channels, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        previous = config.width
        for number, width in enumerate(widths):
            coarsest = number == len(widths) - 1
            stage = Level(previous, width, config.num_res_blocks, config.attention and coarsest)
            if not coarsest:
                stage.downsample = Downsample(width)
            self.down.append(stage)
            previous = width
        self.mid = Middle(previous, config.mid_attention)
        self.norm_out = group_norm(previous)
        self.conv_out = nn.Conv2d(previous, config.code_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features `(B, C, h, w)` to images `(B, channels, H, W)`, unclamped; one block more a stage than the encoder."""

    def __init__(self, config: TokenizerConfig, out_channels: int) -> None:
        super().__init__()
        widths = [config.width * m for m in config.channel_multipliers]
        previous = widths[-1]
        self.conv_in = nn.Conv2d(config.code_channels, previous, 3, padding=1)
        self.mid = Middle(previous, config.mid_attention)
        stages: list[Level] = []
        for number, width in reversed(list(enumerate(widths))):
            coarsest = number == len(widths) - 1
            stage = Level(previous, width, config.num_res_blocks + 1, config.attention and coarsest)
            if number:
                stage.upsample = Upsample(width)
            stages.append(stage)
            previous = width
        self.up = nn.ModuleList(reversed(stages))  # up.0 is the finest, as in checkpoints, and runs last
        self.norm_out = group_norm(previous)
        self.conv_out = nn.Conv2d(previous, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for stage in reversed(self.up):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))
