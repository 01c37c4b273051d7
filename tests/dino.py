"""A small vision transformer in the form of DINOv2's files."""

import torch
from torch import nn


def dino_state(width=64, depth=2):
    """Weights with the names that Meta's file has, and the same model of torch's own layers."""
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(width, 1, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
        for _ in range(depth)
    ]
    patches, norm = nn.Conv2d(3, width, 14, stride=14), nn.LayerNorm(width, 1e-6)
    state = {"cls_token": torch.randn(1, 1, width), "pos_embed": torch.randn(1, 1 + 16 * 16, width)}
    state |= {f"patch_embed.proj.{n}": v for n, v in patches.state_dict().items()}
    state |= {f"norm.{n}": v for n, v in norm.state_dict().items()}
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1."}
    names |= {"linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2."}
    for i, layer in enumerate(layers):
        for name, value in layer.state_dict().items():
            old = next(old for old in names if name.startswith(old))
            state[f"blocks.{i}.{names[old]}{name.removeprefix(old)}"] = value
        state |= {f"blocks.{i}.ls{n}.gamma": torch.ones(width) for n in (1, 2)}
    return state, patches, layers, norm
