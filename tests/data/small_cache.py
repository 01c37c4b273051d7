"""A small cache: 90 digits, an untrained tokenizer, crops that differ."""

import torch

from mvar.config import DataConfig, TokenizerConfig
from mvar.data.splits import load_images
from mvar.data.tokens import build_token_cache
from mvar.tokenizer.model import Tokenizer

IDS = {"tokenizer_id": "aaaa", "data": "bbbb"}
BATCH = 16


def make_images():
    return load_images(DataConfig(image_size=16, heldout_fraction=0.05), "heldout")  # 90 images, 3 x 3 crops


def make_tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        width=4, code_channels=3, vocab_size=300, patch_sides=(1, 2, 4), channel_multipliers=(1, 1, 1)
    )
    return Tokenizer(config, in_channels=1).eval()


def build(directory, images=None, tokenizer=None, crops=2, seed=1, ids=IDS, **options):
    return build_token_cache(
        directory,
        images or make_images(),
        tokenizer or make_tokenizer(),
        crops=crops,
        seed=seed,
        ids=ids,
        **{"batch_size": BATCH, **options},
    )
