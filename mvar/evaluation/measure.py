"""The metrics of a set of images, computed outside a run: of real and reconstructed images, and of one's own."""

from typing import Any

import numpy as np
import torch

from mvar.config import EvaluationConfig
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.images import Images
from mvar.evaluation.metrics.contract import Metric
from mvar.evaluation.metrics.inputs import Inputs, Parts, compute, shares
from mvar.progress import Progress
from mvar.registries import METRICS

OF_FEATURES = ("fid", "is", "kid", "precision_recall")


def image_metrics(
    samples: Any,
    reference: Any,
    extractor: Extractor,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> dict[str, float]:
    """FID, IS, KID, precision and recall of samples against reference images.

    The result does not depend on the order of the samples, and is the same every time: samples are put into the order
    of their content, and every random choice has a fixed seed.

    Args:
        samples: generated images, uint8 `(N, ch, H, W)` or an image set.
        reference: real images, of the same size.
        extractor: maps images to features and logits.
        config: sizes of KID's subsets and of the neighbourhood of precision and recall.
        progress: called with how much is done and in all.

    Returns:
        The keys of `OF_FEATURES`.

    Raises:
        UserError: too few images, not uint8, or different sizes.
    """
    parts = Parts(samples=lambda: (samples, None), reference=lambda: reference, extractor=lambda: extractor)
    inputs, found = Inputs(config, parts, extractor.device), {}
    for name, report in zip(OF_FEATURES, shares(progress, len(OF_FEATURES)), strict=True):
        metric: Metric = METRICS.find(name)()
        found |= compute(name, metric, inputs, report)
    return found


def label_accuracy(images: Any, labels: Any, extractor: Extractor, progress: Progress | None = None) -> float:
    """Share of images, 0 to 1, whose largest logit is that of their label `(N,)`."""
    _, logits = extractor.extract(Images(images, "samples"), progress=progress)
    return (logits.argmax(1) == torch.as_tensor(np.asarray(labels))).double().mean().item()
