"""Memory of drawing on a GPU, counted on tensors without values, as `footprint` counts a step of training.

    peak = weights of the generator and of the tokenizer
         + states of all layers, for both halves of guidance, and what a scale holds meanwhile;
           or what decoding holds, if that is more: with CUDA graphs, whose memory stays, it comes on top

All of this grows linearly with the images, and with the layers of one kind; so few of both are counted.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from mvar.config import RunConfig, RuntimeConfig
from mvar.data.crops import to_float
from mvar.data.tokens import BATCH_SIZE
from mvar.kernels.fake_gpu import fake_gpu
from mvar.sampling import generate
from mvar.sampling.graphs import Graphs
from mvar.tokenizer.model import Tokenizer, at_once
from mvar.training.footprint import Held, Line
from mvar.transformer import ScaleTransformer


def drawing(config: RunConfig, images: int) -> int:
    """Bytes on one GPU while a run draws so many images at once, and decodes them.

    What picks one of several candidates (`sample.candidates`) is not counted.
    """
    graphs = config.runtime.cuda_graphs and not config.sample.more_smooth
    # pydantic gives frozen models a hash, its stub knows that only of models with frozen=True in the class line.
    counted = _drawn(config.model, config.token_space, config.tokenizer, config.sample, graphs)  # pyright: ignore[reportArgumentType]  # fmt: skip
    tokenizer = _tokenizer(config.tokenizer, config.data.channels)  # pyright: ignore[reportArgumentType]
    pixels = 2 * 4 * images * config.data.channels * config.data.image_size**2  # of all parts, and put together
    held, decoding = counted.held.at(images), tokenizer.decoding + pixels
    return counted.weights + tokenizer.weights + (held + decoding if graphs else max(held, decoding))


def encoding(config: RunConfig) -> int:
    """Bytes on one GPU while the tokens of a cache are written: the tokenizer, and what it holds of a round."""
    tokenizer = _tokenizer(config.tokenizer, config.data.channels)  # pyright: ignore[reportArgumentType]
    pixels = 5 * BATCH_SIZE * config.data.channels * config.data.image_size**2  # as bytes, and in fp32
    return tokenizer.weights + tokenizer.encoding + pixels


@dataclass(frozen=True)
class _Drawn:
    weights: int
    held: Line


@dataclass(frozen=True)
class _Few:
    """Bytes of a tokenizer, and what it holds at most with as many images as it takes at once."""

    weights: int
    encoding: int
    decoding: int


@cache
def _tokenizer(config: Any, channels: int) -> _Few:
    with torch.device("meta"):
        tokenizer = Tokenizer(config, channels)
    latent, side = config.patch_sides[-1], config.patch_sides[-1] * config.downsample
    few = at_once((side, side), BATCH_SIZE)
    with fake_gpu():
        tokenizer.to_empty(device="cuda").eval()
        with Held() as encoding:
            tokenizer.encode(to_float(torch.zeros(few, channels, side, side, dtype=torch.uint8, device="cuda")))
        with Held() as decoding:
            tokenizer.decode(torch.zeros(few, config.code_channels, latent, latent, device="cuda"))
    weights = sum(t.nbytes for t in (*tokenizer.parameters(), *tokenizer.buffers()))
    return _Few(weights, encoding.most, decoding.most)


@cache
def _drawn(model: Any, space: Any, tokenizer: Any, sample: Any, graphs: bool) -> _Drawn:
    with torch.device("meta"):
        module = ScaleTransformer(model, space, RuntimeConfig(scan_backend="torch", attention_backend="torch"))
        quantizer = Tokenizer(tokenizer, 1).quantize
    weights = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    kinds: dict[str, list[int]] = {}
    for number, text in enumerate(model.layers):
        kinds.setdefault(text, []).append(number)
    least = {kind[0] for kind in kinds.values()}
    every = list(module.each_block())

    def held(numbers: set[int], images: int) -> int:
        module.blocks = nn.ModuleList(every[i] for i in sorted(numbers))
        return held_by_drawing(module, quantizer, sample, images, graphs)

    def of_all(images: int) -> int:
        few = held(least, images)
        more = ((kind, held({*least, kind[1]}, images) - few) for kind in kinds.values() if len(kind) > 1)
        return few + sum((len(kind) - 1) * each for kind, each in more)

    with fake_gpu():
        module.to_empty(device="cuda").eval()
        quantizer.to_empty(device="cuda").eval()
        return _Drawn(weights, Line(of_all(2), of_all(3)))


def held_by_drawing(module: ScaleTransformer, quantizer: Any, sample: Any, images: int, graphs: bool) -> int:
    """The most bytes that are held while so many images are drawn, weights aside."""
    recorded = Graphs(lambda steps: list(steps)) if graphs else None
    with Held() as held:
        labels = torch.zeros(images, dtype=torch.long)
        generate(module, quantizer, labels, list(range(images)), sample, check=False, graphs=recorded)
    return held.most
