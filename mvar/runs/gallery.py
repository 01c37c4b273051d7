"""Pictures of a trained generator: which classes are meant, how they are drawn, and one grid of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mvar.checkpoints.weights import load_weights
from mvar.config import RunConfig, override
from mvar.errors import UserError, one_of
from mvar.runs.at_hand import drawn_at_once
from mvar.runs.display import shown
from mvar.runs.stages.contract import way_out
from mvar.runs.stages.reject import LabelScore
from mvar.runs.stages.sample import draw_images
from mvar.runs.store import RunDirectory
from mvar.sampling.graphs import Graphs
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer

DEFAULT_CLASSES = 10


def with_sampling(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The config with other fields of `SampleConfig`, by their name (`sample.` before it or not), or whole sections.

    Raises:
        UserError: an unknown field, or a value that is not allowed.
    """
    return override(config, dotted({f"sample.{name.removeprefix('sample.')}": settings[name] for name in settings}))


def dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by their dotted names, of settings some of which are whole sections."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= dotted({f"{name}.{inner}": value[inner] for inner in value})
        else:
            values[name] = value
    return values


def draw_set(
    model: ScaleTransformer,
    tokenizer: Tokenizer,
    numbers: Sequence[int],
    per_class: int,
    config: RunConfig,
    score: LabelScore | None = None,
) -> np.ndarray:
    """Draw `per_class` images of each class, `(N, H, W, channels)` uint8, class by class.

    Args:
        model, tokenizer: what draws.
        numbers: of the classes.
        per_class: images of each.
        config: image i of the set has the seed `(sample.seed, i)`; `runtime.sample_batch` are drawn at once.
        score: picks an image of `sample.candidates`.

    Raises:
        UserError: less than one image a class.
    """
    if per_class < 1:
        raise UserError(f"per_class: {per_class}; allowed: 1 or more")
    labels = torch.tensor(numbers).repeat_interleave(per_class)
    seeds, size = [(config.sample.seed, i) for i in range(len(labels))], drawn_at_once(config)
    parts, graphs = [], Graphs.of(config.runtime, model.pos_1LC.device)
    with shown("sample", "drawing") as progress:
        for part in (slice(i, i + size) for i in range(0, len(labels), size)):
            progress(part.start, len(labels))
            parts.append(draw_images(model, tokenizer, labels[part], seeds[part], config, score, graphs))
    return np.concatenate(parts)


def class_names(run: RunDirectory) -> list[str]:
    """The names of a trained run's classes, as its weights file has them."""
    with way_out():
        return list(load_weights(run.weights)[1]["class_names"])


def class_numbers(classes: Sequence[str | int], names: Sequence[str]) -> list[int]:
    """The numbers of classes that were asked for by name or number; none: the first ten.

    Raises:
        UserError: an unknown class; lists the names.
    """
    return [_class_number(name, names) for name in classes] or list(range(min(DEFAULT_CLASSES, len(names))))


def _class_number(name: str | int, names: Sequence[str]) -> int:
    if not isinstance(name, str):
        if 0 <= name < len(names):
            return int(name)
        raise one_of("class", name, range(len(names)) if len(names) <= DEFAULT_CLASSES else [f"0 to {len(names) - 1}"])
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise one_of("class", name, names)
