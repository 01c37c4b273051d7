"""What rejection sampling keeps images by: how surely a classifier gives an image the class it was drawn for."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.errors import UserError
from mvar.evaluation.extractor import Extractor
from mvar.progress import Progress

PER_CLASS = 10  # training images a class that tell which of a classifier's outputs means the class


def class_outputs(
    extractor: Extractor,
    images: Any,
    num_classes: int,
    per_class: int = PER_CLASS,
    progress: Progress | None = None,
) -> list[int]:
    """The number of the classifier's output that stands for each class of a data set.

    An extractor that knows the labels has one output a class, in order. Inception's 1008 outputs are in an order of
    their own, which its weights file does not tell: the output of a class is the one with the highest mean probability
    over `per_class` training images of it.

    Args:
        extractor: whose logits judge.
        images: the training images, an image set with `labels`.
        num_classes: of the data set.
        progress: called with classes done and in all.

    Raises:
        UserError: a class without images.
    """
    if extractor.knows_labels:
        return list(range(num_classes))
    labels, found = np.asarray(images.labels), []
    for number in range(num_classes):
        chosen = np.flatnonzero(labels == number)[:per_class]
        if not len(chosen):
            raise UserError(f"data: class {number} has no training image; allowed: one or more for sample.candidates")
        batch = torch.from_numpy(np.stack([np.asarray(images.image(int(i), None)) for i in chosen]))
        found.append(int(extractor(batch)[1].softmax(-1).mean(0).argmax()))
        if progress:
            progress(number + 1, num_classes)
    return found


def label_score(extractor: Extractor, outputs: list[int], images: np.ndarray, labels: Tensor) -> np.ndarray:
    """Log-probability `(B,)`, float64, that a classifier gives the classes that images were drawn for.

    Args:
        extractor: whose logits judge.
        outputs: of `class_outputs`.
        images: uint8 `(B, H, W, channels)`.
        labels: `(B,)` classes.
    """
    _, logits = extractor(torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))))
    wanted = torch.tensor(outputs, device=logits.device)[labels.to(logits.device)]
    return logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0].cpu().numpy()
