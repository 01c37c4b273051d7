"""Pictures from a run or a published checkpoint: a grid of images with a row for each class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar import layout
from mvar.checkpoints import published
from mvar.checkpoints.weights import load_weights
from mvar.config import RunConfig, override
from mvar.errors import UserError, one_of
from mvar.runs.display import shown
from mvar.runs.published_tokenizer import need_tokenizer, published_tokenizer
from mvar.runs.stages.contract import way_out
from mvar.runs.stages.reject import LabelScore
from mvar.runs.stages.sample import draw_images, save_grid
from mvar.runs.store import RunDirectory, Store
from mvar.runs.wiring import Stages
from mvar.tokenizer.model import Tokenizer
from mvar.training.distributed import resolve_device
from mvar.transformer import ScaleTransformer

DEFAULT_CLASSES = 10


@dataclass(frozen=True)
class Generator:
    """What draws pictures: a model, its tokenizer, the names of its classes, and how its images are drawn."""

    model: ScaleTransformer
    tokenizer: Tokenizer
    class_names: list[str]
    config: RunConfig
    score: LabelScore | None = None


def of_run(store: Store, run: RunDirectory, settings: Mapping[str, Any], classes: Sequence[str] = ()) -> Generator:
    """The generator of a trained run.

    Args:
        store: holds the run's tokenizer.
        run: a trained run.
        settings: fields of `SampleConfig` that differ from the run's own; pictures keep every image that is drawn
            unless `candidates` is among them.
        classes: that are to be drawn; looked up before anything is loaded.

    Raises:
        UserError: a run that is not trained, an unknown field or class.
    """
    if not run.weights.is_file():
        raise UserError(f"run: {run.name} is not trained yet ({run.state()}); allowed: a run with model.safetensors")
    config = override(run.config(), _sample_fields({"candidates": 1, **settings}))
    names = class_names(run)
    class_numbers(classes, names)
    if not (store.stage("tokenizer", config.tokenizer_id).path / layout.TOKENIZER).is_file():
        need_tokenizer(store, config, run)
    stages = Stages(config, store, run=run)
    model, tokenizer = stages.train.generator, stages.train.load_tokenizer()
    stages.reject.run()
    return Generator(model, tokenizer, names, config, stages.reject.load())


def of_checkpoint(
    config: RunConfig, num_heads: int | None, settings: Mapping[str, Any], classes: Sequence[str] = ()
) -> Generator:
    """The generator of a published checkpoint and its tokenizer, as `imported_config` found them.

    Raises:
        UserError: files that cannot be used; an unknown field or class; `candidates`, for which there is no classifier.
    """
    config = override(config, _sample_fields(settings))
    if config.sample.candidates > 1:
        raise UserError("sample.candidates: needs a classifier; allowed: 1 for a checkpoint, more for a run")
    names = [str(number) for number in range(config.data.num_classes)]
    class_numbers(classes, names)
    device = resolve_device(config.runtime)
    checkpoint, sides = config.train.init_from, config.tokenizer.patch_sides
    assert checkpoint  # `imported_config` names it
    model, _ = published.load_generator(checkpoint, patch_sides=sides, num_heads=num_heads, runtime=config.runtime)
    return Generator(
        model.to(device), published_tokenizer(config.tokenizer, config.data.channels).to(device), names, config
    )


def _sample_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"sample.{name.removeprefix('sample.')}": value for name, value in settings.items()}


def draw_grid(generator: Generator, classes: Sequence[str], per_class: int, seed: int, out: Path) -> list[str]:
    """Draw `per_class` images of each class and write them as one PNG.

    Args:
        generator: what draws.
        classes: class names or numbers; empty: the first ten.
        per_class: images a row.
        seed: numbers the set; equal seeds give equal images.
        out: the PNG.

    Returns:
        The names of the rows.

    Raises:
        UserError: an unknown class.
    """
    names = generator.class_names
    numbers = class_numbers(classes, names) or list(range(min(DEFAULT_CLASSES, len(names))))
    config = override(generator.config, {"sample.seed": seed})
    labels = torch.tensor(numbers).repeat_interleave(per_class)
    seeds = [(seed, i) for i in range(len(labels))]
    batches = [slice(i, i + config.runtime.sample_batch) for i in range(0, len(labels), config.runtime.sample_batch)]
    parts = []
    model, tokenizer = generator.model, generator.tokenizer
    with shown("sample", "drawing") as progress:
        for part in batches:
            progress(part.start, len(labels))
            parts.append(draw_images(model, tokenizer, labels[part], seeds[part], config, generator.score))
    images = np.concatenate(parts)
    save_grid(out, images.reshape(len(numbers), per_class, *images.shape[1:]))
    return [names[number] for number in numbers]


def class_names(run: RunDirectory) -> list[str]:
    """The names of a trained run's classes, as its weights file has them."""
    with way_out():
        return list(load_weights(run.weights)[1]["class_names"])


def class_numbers(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """The numbers of classes that were asked for by name or number; an unknown one is a `UserError`."""
    return [_class_number(name, names) for name in classes]


def _class_number(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise one_of("class", name, names)
