"""FLOPs of the stages that runs share, counted by torch on shapes alone: what estimates of time rest on, no metric.

A product and a convolution count as in `mvar.cost`, a backward pass twice its forward pass. What is neither (sorting,
decoding pictures, a metric's statistics) is not counted; how fast a stage is, is measured while it works.
"""

from functools import cache, partial

import torch

from mvar import layout
from mvar.config import DataConfig, RunConfig
from mvar.data.sources.contract import find
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.evaluation.extractors.classifier import BATCH_SIZE, Classifier
from mvar.registries import SOURCES
from mvar.runs.documents import read_or_empty
from mvar.runs.store import Store
from mvar.tokenizer.flops import coding_flops, counted


def stage_flops(kind: str, config: RunConfig, store: Store) -> float:
    """What a shared stage of a run takes; 0 where it cannot be told: no data here, an extractor of one's own."""
    return {
        "tokenizer": lambda: tokenizer_flops(config),
        "tokens": lambda: _tokens(config, store),
        "extractor": lambda: _extractor(config),
        "floors": lambda: _floors(config, store),
    }[kind]()


def tokenizer_flops(config: RunConfig) -> float:
    """Training of the tokenizer; 0 of a published one."""
    if config.tokenizer.checkpoint:
        return 0.0
    settings = config.tokenizer.train
    return 3.0 * sum(_coding(config)) * settings.steps * settings.batch_size


def image_flops(config: RunConfig, of_extractor: bool) -> float:
    """One image, forwards, through the classifier, or through the tokenizer and back."""
    return float(_judging(config) if of_extractor else sum(_coding(config)))


def encoding_flops(config: RunConfig) -> int:
    """Encoding one image."""
    return _coding(config)[0]


def _tokens(config: RunConfig, store: Store) -> float:
    train, heldout = num_images(config, store)
    crops = 0 if config.train.tokens == "online" else config.train.crops
    return float(encoding_flops(config) * (train * crops + heldout))


def _extractor(config: RunConfig) -> float:
    return 3.0 * _judging(config) * config.evaluation.classifier_steps * BATCH_SIZE


def _floors(config: RunConfig, store: Store) -> float:
    """Features of real and of reconstructed images, and the search for copies among the training images."""
    train, heldout = num_images(config, store)
    few = min(train, config.evaluation.num_images)
    pixels = config.data.channels * config.data.image_size**2
    searching = 2.0 * pixels * train * (2 * heldout + few)
    return float(_judging(config) * (5 * heldout + 3 * few) + sum(_coding(config)) * (heldout + few)) + searching


def num_images(config: RunConfig, store: Store) -> tuple[int, int]:
    """Training and held-out images; (0, 0) where the data were not looked at yet."""
    found = read_or_empty(store.stage("data", config.data_id).path / layout.SUMMARY)
    if {"train", "heldout"} <= found.keys():
        return found["train"], found["heldout"]
    if config.data.name in SOURCES.own or not find(config.data.name).in_memory:
        return 0, 0
    try:
        return _in_memory(config.data)  # pyright: ignore[reportArgumentType]  as in `tokenizer.flops`
    except UserError:  # said where they are read
        return 0, 0


@cache
def _in_memory(data: DataConfig) -> tuple[int, int]:
    return len(load_images(data, "train")), len(load_images(data, "heldout"))


def _coding(config: RunConfig) -> tuple[int, int]:
    """FLOPs of encoding and of decoding one image."""
    return coding_flops(config.tokenizer, config.data.channels)


def _judging(config: RunConfig) -> int:
    """FLOPs of the classifier on one image; 0 of another extractor, which is not trained."""
    if config.evaluation.extractor != "classifier":
        return 0
    return _judging_of(config.data)  # pyright: ignore[reportArgumentType]  as in `tokenizer.flops`


@cache
def _judging_of(data: DataConfig) -> int:
    with torch.device("meta"):
        classifier = Classifier(data.channels, data.num_classes)
        images = torch.empty(1, data.channels, data.image_size, data.image_size)
    return counted(partial(classifier, images))
