"""Small models with weights far from any special value, and images of theirs: what probes are tested on."""

import torch

from mvar.config import MambaConfig, ModelConfig, SampleConfig, TokenizerConfig, TokenSpace
from mvar.probes.knockout import Bench
from mvar.probes.measurable import Opened
from mvar.registries import MIXERS
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

SPACE = TokenSpace((1, 2, 3), vocab_size=11, code_channels=4, num_classes=3)
VARIANTS = ["intra+mamba", "intra|mamba", "mamba:scan_order=both", "markov:3"]
PATTERNS = [*MIXERS.names(), *VARIANTS, "global intra+mamba"]
IMAGES = 7


def model_of(pattern, depth=2):
    torch.manual_seed(0)
    mamba = MambaConfig(d_state=8, headdim=8)
    model = ScaleTransformer(ModelConfig(depth=depth, width=16, num_heads=2, pattern=pattern, mamba=mamba), SPACE)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.double().eval()


def quantizer():
    torch.manual_seed(0)
    return ResidualQuantizer(TokenizerConfig(patch_sides=SPACE.patch_sides, vocab_size=11, code_channels=4)).double()


def opened(model, count=IMAGES):
    torch.manual_seed(1)
    tokens, labels, codes = torch.randint(0, 11, (count, 14)), torch.arange(count) % 3, quantizer()
    return Opened(
        model,
        None,  # pyright: ignore[reportArgumentType]  no image is drawn
        SampleConfig(),
        count,
        lambda numbers: (labels[list(numbers)], codes.inputs(tokens[list(numbers)])),
        lambda numbers: tokens[list(numbers)],
    )


def bench(pattern, count=IMAGES, batch_size=3):
    return Bench(opened(model_of(pattern), count), batch_size)
