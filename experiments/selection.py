"""Rejection sampling of a run: its extractor's classifier picks, of several candidates, the image to keep."""

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor

from experiments import stages
from experiments.stages import Context
from experiments.store import read_document, write_document

LabelScore = Callable[[np.ndarray, Tensor], np.ndarray]  # images (B, H, W, channels) uint8, labels (B,) -> scores (B,)


def scorer(context: Context) -> LabelScore | None:
    """What `sample.candidates` are judged by, or None where every drawn image is kept.

    The judge is the extractor that the metrics use too: FID and IS of images that it picked flatter it, as they do in
    the papers that pick by an ImageNet classifier.
    """
    from mvar.evaluation.rejection import class_outputs, label_score

    config = context.config
    if config.sample.candidates == 1:
        return None
    stages.build_extractor(context)
    directory = context.store.stage("extractor", config.extractor_id)
    path = directory.path / "class_outputs.json"
    with directory.lock(context.should_stop):
        extractor = stages.load_extractor(context)
        try:
            outputs = read_document(path)["outputs"]
        except FileNotFoundError:
            outputs = class_outputs(extractor, stages.images(config, "train"), config.data.num_classes)
            write_document(path, {"outputs": outputs})
    return partial(label_score, extractor, outputs)
