"""One evaluation of a trained generator: every number of a row of the report that comes from images or likelihood."""

from typing import Any

import numpy as np
import torch

from mvar.config import EvaluationConfig
from mvar.errors import UserError
from mvar.evaluation.copies import copy_rate
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.images import Images, in_turn
from mvar.evaluation.likelihood import heldout_nll
from mvar.evaluation.metrics import image_metrics
from mvar.progress import Progress
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer


def measure_samples(
    samples: Any,
    labels: Any,
    *,
    model: ScaleTransformer,
    quantizer: ResidualQuantizer,
    heldout_tokens: Any,
    heldout_labels: Any,
    train_images: Any,
    heldout_images: Any,
    extractor: Extractor,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Metrics of samples and of the model that drew them; the same numbers every time.

    Args:
        samples: uint8 `(N, ch, H, W)`.
        labels: `(N,)` the classes that the samples were drawn for.
        model: the generator.
        quantizer: of its tokenizer.
        heldout_tokens: `(M, L)` tokens of the held-out images.
        heldout_labels: `(M,)` their classes.
        train_images: what the generator was trained on, uint8 array, image set or `mvar.evaluation.copies.Vectors`.
        heldout_images: the reference of every metric, uint8 array or image set.
        extractor: the features and logits to compare.
        config: sizes of the metrics.
        progress: called batch by batch with images done and in all, over all passes; what it raises ends the work.

    Returns:
        The results of `image_metrics`, `heldout_nll` and `copy_rate`, and, where the extractor knows the labels,
        `eval/label_accuracy`: the share of samples that it assigns to the class they were drawn for.

    Raises:
        UserError: inputs that do not fit together.
    """
    samples, labels = Images(samples, "samples"), np.asarray(labels)
    if labels.shape != (len(samples),):
        raise UserError(f"labels: shape {labels.shape}; allowed: ({len(samples)},), one label a sample")
    drawn, heldout = len(samples), len(heldout_images)
    sizes = [2 * drawn + heldout, len(heldout_tokens), drawn + heldout + len(train_images)]
    reports = in_turn(progress, [*sizes, drawn] if extractor.knows_labels else sizes)
    result = image_metrics(samples, heldout_images, extractor, config, reports[0])
    result |= heldout_nll(model, quantizer, heldout_tokens, heldout_labels, progress=reports[1])
    result |= copy_rate(samples, train_images, heldout_images, reports[2], extractor.device)
    if extractor.knows_labels:
        result["eval/label_accuracy"] = label_accuracy(samples, labels, extractor, reports[3])
    return result


def label_accuracy(images: Any, labels: Any, extractor: Extractor, progress: Progress | None = None) -> float:
    """Share of images, 0 to 1, whose largest logit is that of their label `(N,)`."""
    _, logits = extractor.extract(Images(images, "samples"), progress=progress)
    return (logits.argmax(1) == torch.as_tensor(np.asarray(labels))).double().mean().item()
