"""Rejection sampling of a run: its extractor's classifier picks, of several candidates, the image to keep."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from mvar import layout
from mvar.config import DataConfig
from mvar.data.splits import load_images
from mvar.evaluation.rejection import class_outputs, label_score
from mvar.runs.documents import read_document, read_or_warn, write_document
from mvar.runs.stages.contract import LockedStage
from mvar.runs.stages.extractor import ExtractorStage

LabelScore = Callable[[np.ndarray, Tensor], np.ndarray]  # images (B, H, W, channels) uint8, labels (B,) -> scores (B,)


@dataclass(frozen=True)
class RejectStage(LockedStage):
    """Writes `class_outputs.json` in the extractor's directory: which of its outputs means each class.

    The judge is the extractor that the metrics use too: FID and IS of images that it picked flatter it, as they do in
    the papers that pick by an ImageNet classifier.

    Args:
        data: whose training images tell which output means which class.
        candidates: images that are drawn for one that is kept; 1: all are kept, and there is nothing to do.
        extractor: the judge.
    """

    data: DataConfig
    candidates: int
    extractor: ExtractorStage
    name = "reject"

    def run(self) -> None:
        """Make what `load` reads, where it is missing: the extractor too."""
        if self.candidates > 1:
            self.extractor.run()  # not under the lock, which it takes itself
            super().run()

    def is_done(self) -> bool:
        """Whether it is known which output means each class."""
        return bool(read_or_warn(self._path))

    def make(self) -> None:
        """Find which output means each class."""
        extractor, train = self.extractor.load(), load_images(self.data, "train")
        outputs = class_outputs(extractor, train, self.data.num_classes, progress=self.watch.heed(self.name))
        write_document(self._path, {"outputs": outputs})

    def load(self) -> LabelScore | None:
        """What candidates are judged by, or None where every drawn image is kept.

        Builds and locks nothing: processes on other nodes may call it at any time after `run`.
        """
        if self.candidates == 1:
            return None
        outputs = read_document(self._path)["outputs"]
        return partial(label_score, self.extractor.load(), outputs)

    @property
    def _path(self) -> Path:
        return self.directory.path / layout.CLASS_OUTPUTS
