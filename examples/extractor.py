"""A feature extractor of your own: DINOv2 (Oquab et al. 2023), from a file that is on this machine.

mvar evaluate RUN --plugin examples/extractor.py --set evaluation.extractor=dino evaluation.dino.weights=s14.pth
"""

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

import mvar

PATCH, SIDE, HEAD = 14, 224, 64  # px of a patch and of what an image is resized to; channels of a head


class Dino(nn.Module):
    """The vision transformer of DINOv2, of any size: the normalised class token, `(B, D)`, of images in [0, 1]."""

    def __init__(self, state):
        super().__init__()
        self.state = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(state[name], False) for name in state})
        self.depth = sum(name.endswith("attn.qkv.weight") for name in state)

    def of(self, name):
        return [self.state[f"{name}/{part}"] for part in ("weight", "bias")]

    def forward(self, images):
        x = F.conv2d(images, *self.of("patch_embed/proj"), stride=PATCH)
        width, grid = x.shape[1], x.shape[2]
        own, places = self.state["pos_embed"][:, :1], self.state["pos_embed"][:, 1:]
        side = round(places.shape[1] ** 0.5)
        places = places.transpose(1, 2).unflatten(2, (side, side))
        x = (x + F.interpolate(places, (grid, grid), mode="bicubic")).flatten(2).transpose(1, 2)
        x = torch.cat(((self.state["cls_token"] + own).expand(len(x), -1, -1), x), 1)
        for block in (f"blocks/{i}" for i in range(self.depth)):
            y = F.linear(F.layer_norm(x, (width,), *self.of(f"{block}/norm1"), 1e-6), *self.of(f"{block}/attn/qkv"))
            y = F.scaled_dot_product_attention(*y.unflatten(2, (3, -1, HEAD)).permute(2, 0, 3, 1, 4))
            y = F.linear(y.transpose(1, 2).flatten(2), *self.of(f"{block}/attn/proj"))
            x = x + self.state[f"{block}/ls1/gamma"] * y
            y = F.linear(F.layer_norm(x, (width,), *self.of(f"{block}/norm2"), 1e-6), *self.of(f"{block}/mlp/fc1"))
            x = x + self.state[f"{block}/ls2/gamma"] * F.linear(F.gelu(y), *self.of(f"{block}/mlp/fc2"))
        return F.layer_norm(x, (width,), *self.of("norm"), 1e-6)[:, 0]


@mvar.register("extractor", "dino")
class DinoKind(mvar.ExtractorKind):
    """DINOv2's class token. It has no classes: the features stand for logits, and IS means nothing."""

    class Settings(mvar.Config):
        weights: str = Field(description="Meta's file, e.g. dinov2_vits14_pretrain.pth.", default="")

    def network(self, directory):
        return Dino(torch.load(self.settings.weights, weights_only=True)), None

    def forward(self, network, images):
        pixels = F.interpolate(images.expand(-1, 3, -1, -1) / 255, (SIDE, SIDE), mode="bicubic", antialias=True)
        mean, sd = (pixels.new_tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        features = network((pixels - mean) / sd)
        return features, features
