"""Pictures from a finished run: a grid of images with a row for each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from experiments.pipeline import draw_images, load_generator, save_grid
from experiments.selection import scorer
from experiments.stages import Context, load_tokenizer
from experiments.store import RunDirectory, Store
from mvar.config import override
from mvar.errors import UserError, one_of
from mvar.weights import load_weights

DEFAULT_CLASSES = 10


def draw_grid(
    store: Store,
    run: RunDirectory,
    classes: Sequence[str],
    per_class: int,
    seed: int,
    settings: Mapping[str, str],
    out: Path,
) -> list[str]:
    """Draw `per_class` images of each class and write them as one PNG.

    Args:
        store: holds the run's tokenizer.
        run: a trained run.
        classes: class names or numbers; empty: the first ten.
        per_class: images a row.
        seed: numbers the set; equal seeds give equal images.
        settings: fields of `SampleConfig` that differ from the run's own.
        out: the PNG.

    Returns:
        The names of the rows.

    Raises:
        UserError: a run that is not trained, an unknown class or field.
    """
    config = run.config()
    if not run.weights.is_file():
        raise UserError(f"run: {run.name} is not trained yet ({run.state()}); allowed: a run with model.safetensors")
    asked = {f"sample.{name}": value for name, value in settings.items()}
    config = override(config, {"sample.candidates": 1} | asked | {"sample.seed": seed})
    names = class_names(run)
    numbers = [_class_number(name, names) for name in classes] or list(range(min(DEFAULT_CLASSES, len(names))))
    context = Context(config, store, lambda stage, done, total: None, lambda: False)
    labels = torch.tensor(numbers).repeat_interleave(per_class)
    seeds = [(seed, i) for i in range(len(labels))]
    model, tokenizer = load_generator(run, context.device), load_tokenizer(context)
    images = draw_images(model, tokenizer, labels, seeds, config, scorer(context))
    save_grid(out, images.reshape(len(numbers), per_class, *images.shape[1:]))
    return [names[number] for number in numbers]


def class_names(run: RunDirectory) -> list[str]:
    """The names of a trained run's classes, as its weights file has them."""
    return list(load_weights(run.weights)[1]["class_names"])


def _class_number(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise one_of("class", name, names)
