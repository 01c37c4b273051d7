"""What is measured on a model: its images, and all that decides the result; images that it draws itself too."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvar.config import RuntimeConfig, SampleConfig
from mvar.data.crops import ImageSet
from mvar.data.sources.contract import Split
from mvar.errors import UserError, one_of
from mvar.evaluation.judge import Judge
from mvar.files import read_json
from mvar.sampling import balanced_labels, generate
from mvar.tokenizer.model import Tokenizer
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

SPLITS: tuple[Split, ...] = ("train", "heldout")
MAX_IMAGES = 1000  # of the held-out ones, evenly spread
SOURCES = ("heldout", "self")  # of images that attention is measured on
Batch = tuple[Tensor, Tensor]  # labels (B,), inputs (B, L - n_0, C)


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode and its images: `batch(numbers)` gives labels and inputs on the model's device.

    `sample` says how it draws images, whether those are measured or others. `codes(numbers)` gives the tokens `(B, L)`
    int64 of real images; None where the images are drawn. `images(split)` are the image sets of a run's data; None of a
    checkpoint. `judge()` is what images that are drawn are judged by; None where nothing is.
    """

    model: ScaleTransformer
    tokenizer: Tokenizer
    sample: SampleConfig
    num_images: int
    batch: Callable[[Sequence[int]], Batch]
    codes: Callable[[Sequence[int]], Tensor] | None = None
    images: Callable[[Split], ImageSet] | None = None
    judge: Callable[[], Judge] | None = None


@dataclass(frozen=True)
class Measurable:
    """A model and images of it. `identity` (JSON values) is all that decides the result; `open` loads what it takes.

    `runtime` says how fp32 is computed on a GPU. Where images are judged, `extractor_id` says by which extractor, empty
    where nothing can judge them; `reference()` what they are compared with instead of the held-out images as they are,
    nothing where it is these. `splits` says whose real images there are.
    """

    identity: dict[str, Any]
    open: Callable[[], Opened]
    extractor_id: str = ""
    reference: Callable[[], dict[str, Any]] = dict
    runtime: RuntimeConfig = RuntimeConfig()
    splits: tuple[Split, ...] = SPLITS

    def judged_by(self) -> dict[str, Any]:
        """All that decides FID beside the images; nothing where there is none.

        Raises:
            UserError: a file of reference that is not there.
        """
        if not self.extractor_id:
            return {}
        found = {"extractor_id": self.extractor_id}
        return found | ({"reference": reference} if (reference := self.reference()) else {})


def check_measured(source: str, images: int, batch: int) -> None:
    """Refuse what nothing can be measured on.

    Raises:
        UserError: an unknown source, a negative number.
    """
    if source not in SOURCES:
        raise one_of("source", source, SOURCES)
    for name, value in (("images", images), ("batch", batch)):
        if value < 0:
            raise UserError(f"{name}: {value}; allowed: 1 or more, 0 for the default")


def kept_limits(documents: Iterable[Path]) -> list[int]:
    """At most how many images documents of measurements are of, each number once; damaged ones tell nothing."""
    found = set()
    for path in documents:
        with suppress(FileNotFoundError, UserError, KeyError, TypeError, ValueError):
            found.add(int(read_json(path)["measured"]["limit"]))
    return sorted(found)


def drawn_images(model: ScaleTransformer, tokenizer: Tokenizer, num_images: int, sample: SampleConfig) -> Opened:
    """Images that a model draws: teacher forcing on what it saw while drawing gives the attention of the drawing.

    With guidance that is the half with the class; the half without one is not measured.
    """
    all_labels = balanced_labels(num_images, model.space.num_classes)

    def batch(numbers: Sequence[int]) -> Batch:
        labels = all_labels[list(numbers)].to(model.pos_1LC.device)
        seeds = [(sample.seed, number) for number in numbers]
        return labels, drawn_inputs(model, tokenizer.quantize, labels, seeds, sample)

    return Opened(model, tokenizer, sample, num_images, batch)


def drawn_inputs(
    model: ScaleTransformer,
    quantizer: ResidualQuantizer,
    labels: Tensor,
    seeds: list[tuple[int, int]],
    sample: SampleConfig,
) -> Tensor:
    """Draw an image a label; the inputs `(B, L - n_0, C)` that the model saw, also where codes were mixed."""
    last = model.schedule.num_scales - 1
    inputs = [quantizer.embedding.weight.new_empty(len(labels), 0, model.space.code_channels)]

    def keep(scale: int, latent: Tensor) -> None:
        if scale < last:
            inputs.append(quantizer.next_input(latent, scale + 1))

    generate(model, quantizer, labels, seeds, sample, on_latent=keep)
    return torch.cat(inputs, 1)
