"""Rejection sampling of a run: its extractor's classifier picks, of several candidates, the image to keep."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from mvar.runs.documents import read_document, read_or_warn, write_document
from mvar.runs.stages import shared as stages
from mvar.runs.stages.shared import Context

LabelScore = Callable[[np.ndarray, Tensor], np.ndarray]  # images (B, H, W, channels) uint8, labels (B,) -> scores (B,)


def scorer(context: Context) -> LabelScore | None:
    """What `sample.candidates` are judged by, or None where every drawn image is kept.

    The judge is the extractor that the metrics use too: FID and IS of images that it picked flatter it, as they do in
    the papers that pick by an ImageNet classifier.
    """
    prepare_scorer(context)
    return load_scorer(context)


def prepare_scorer(context: Context) -> None:
    """Make what `load_scorer` reads, where it is missing: the extractor, and which of its outputs means each class."""
    from mvar.evaluation.rejection import class_outputs

    config = context.config
    if config.sample.candidates == 1:
        return
    stages.build_extractor(context)
    path = _outputs_path(context)
    with context.store.stage("extractor", config.extractor_id).lock(context.should_stop):
        if not read_or_warn(path):
            extractor, training = stages.load_extractor(context), stages.images(config, "train")
            heed = context.heed("extractor")
            outputs = class_outputs(extractor, training, config.data.num_classes, progress=heed)
            write_document(path, {"outputs": outputs})


def load_scorer(context: Context) -> LabelScore | None:
    """The scorer that was prepared. Builds and locks nothing: processes on other nodes may call it at any time."""
    from mvar.evaluation.rejection import label_score

    if context.config.sample.candidates == 1:
        return None
    outputs = read_document(_outputs_path(context))["outputs"]
    return partial(label_score, stages.load_extractor(context), outputs)


def _outputs_path(context: Context) -> Path:
    return context.store.stage("extractor", context.config.extractor_id).path / "class_outputs.json"
