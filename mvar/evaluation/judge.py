"""What images that are drawn are judged by: an extractor, and what they are compared with."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mvar.config import RunConfig
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.fidelity import Statistics, distance_of, statistics
from mvar.evaluation.images import Images
from mvar.evaluation.reference import Reference, file_of, fitting, reference_of
from mvar.files import known_digest


@dataclass(frozen=True)
class Judge:
    """FID of any number of sets of images; the statistics of the reference are computed once.

    Args:
        extractor: makes the features.
        reference: what images are compared with.
    """

    extractor: Extractor
    reference: Reference

    def fid(self, images: Any) -> float:
        """FID of uint8 images `(N, ch, H, W)` or an image set.

        Raises:
            UserError: a file of reference of another number of features than the extractor has.
        """
        features = self.extractor.extract(Images(images, "drawn images"))[0]
        given = fitting(self.reference.features, features.shape[1])
        return distance_of(statistics(features), given or self._of_images)

    @cached_property
    def _of_images(self) -> Statistics:
        return statistics(self.extractor.extract(Images(self.reference.images, "reference images"))[0])


def judge_of(config: RunConfig, extractor: Extractor) -> Judge:
    """What a config's images are judged by: FID is against the same as in its evaluation.

    Raises:
        UserError: a reference that cannot be had.
    """
    return Judge(extractor, reference_of(config))


def other_reference(config: RunConfig) -> dict[str, Any]:
    """What tells a config's reference from the held-out images as they are; nothing where it is these.

    Raises:
        UserError: a file that is not there.
    """
    evaluation = config.evaluation
    if evaluation.reference:
        file = file_of(evaluation.reference)
        return {"file": file.name, "sha256": known_digest(file)}
    factor = evaluation.reference_resize_factor
    return {} if factor is None else {"resize_factor": factor}
