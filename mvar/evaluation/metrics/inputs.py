"""What metrics are computed from: each thing is read or computed when a metric first asks for it, once for all."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mvar.config import EvaluationConfig
from mvar.data.rounds import Heed, Sharing, alone
from mvar.errors import UserError
from mvar.evaluation.extraction import Extracted, extract
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.fidelity import Statistics, check_counts, statistics
from mvar.evaluation.images import Images, check_same_size, in_turn
from mvar.evaluation.metrics.contract import NEEDS, Metric, checked
from mvar.evaluation.reference import Reference, fitting
from mvar.progress import Progress

if TYPE_CHECKING:
    from mvar.tokenizer.quantizer import ResidualQuantizer
    from mvar.transformer import ScaleTransformer

Together = Callable[[bool], AbstractContextManager[tuple[Sharing, Heed]]]
WHOLE = 1000  # how a metric's share of the progress is counted


@dataclass(frozen=True)
class Features:
    """What the extractor makes of samples and reference, float64 on the CPU; rows in the order of the images."""

    samples: Tensor  # (N, F)
    logits: Tensor  # (N, K), of the samples
    reference: Tensor  # (M, F)
    reference_logits: Tensor  # (M, K)


@dataclass(frozen=True)
class Parts:
    """How each thing is had; called once at most, where a metric asks for it."""

    samples: Callable[[], tuple[Any, Any]] | None = None  # uint8 (N, ch, H, W) or an image set; classes (N,) or None
    reference: Callable[[], Any] | None = None  # images, or a `Reference`: those of a file, and its statistics
    heldout: Callable[[], Any] | None = None  # images; None: the reference's
    train: Callable[[], Any] | None = None  # images, or `mvar.evaluation.copies.Vectors`
    weights: "Callable[[], tuple[ScaleTransformer, ResidualQuantizer]] | None" = None
    tokens: Callable[[], tuple[Any, Any]] | None = None  # (M, L), classes (M,)
    extractor: Callable[[], Extractor] | None = None


class Inputs:
    """What a metric may read, as far as its `needs` name it.

    Samples are in the order of their content, whatever order they were drawn in, and labels and features in that of
    the samples: the same set of images has the same metrics.

    Args:
        config: sizes of the metrics.
        parts: how each thing is had.
        device: where large products are computed.
        spatial: whether spatial features are going to be asked for: they are then made in one pass with the others.
        together: opened with `spatial` while features are made: the processes that share that, and what they heed.
        features: whether features are going to be asked for; statistics of spatial ones alone keep none in memory.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        parts: Parts,
        device: torch.device | str = "cpu",
        spatial: bool = False,
        together: Together = lambda spatial: alone(),
        features: bool = True,
    ) -> None:
        self.config, self.device, self._with_spatial, self._keep = config, device, spatial, features
        self._together = together
        self._parts = parts
        self._allowed: frozenset[str] | None = None
        self.progress: Progress | None = None

    @contextmanager
    def seen_by(self, metric: Metric, progress: Progress | None = None) -> Iterator[None]:
        """Inside the block: only what a metric needs can be read, and it tells how far it is by `inputs.progress`."""
        needs = set(metric.needs)
        if needs & {"features", "spatial"}:
            needs |= {"samples", "reference"}
        self._allowed, self.progress = frozenset(needs), progress
        try:
            yield
        finally:
            self._allowed, self.progress = None, None

    def _given(self, what: str, part: str | None = None) -> Any:
        """A part, called."""
        self._check(what)
        call = getattr(self._parts, part or what)
        if call is None:
            raise UserError(f"{what}: there are none here ({NEEDS[what]}); allowed: metrics that do without")
        return call()

    def _check(self, what: str) -> None:
        if self._allowed is not None and what not in self._allowed:
            raise UserError(f"reads {what}, which its `needs` do not name; allowed: {', '.join(sorted(self._allowed))}")

    # Samples ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _drawn(self) -> tuple[Images, np.ndarray | None]:
        source, labels = self._given("samples")
        images = Images(source, "samples")
        if labels is not None and np.shape(labels) != (len(images),):
            raise UserError(f"labels: shape {np.shape(labels)}; allowed: ({len(images)},), one label a sample")
        order = images.content_order()
        return images.subset(order), None if labels is None else np.asarray(labels)[order]

    @property
    def samples(self) -> Images:
        """The N drawn images, a set of uint8 `(ch, H, W)`."""
        self._check("samples")
        return self._drawn[0]

    @property
    def labels(self) -> np.ndarray:
        """The classes `(N,)` that the samples were drawn for."""
        self._check("samples")
        if self._drawn[1] is None:
            raise UserError("labels: the samples have none; allowed: one a sample")
        return self._drawn[1]

    # Reference --------------------------------------------------------------------------------------------------------

    @cached_property
    def _reference(self) -> Reference:
        found = self._given("reference")
        return found if isinstance(found, Reference) else Reference(found)

    @property
    def reference(self) -> Any:
        """M images to compare with: an image set (`image(i, None)`; held-out ones have `labels`) or an array."""
        self._check("reference")
        return self._reference.images

    @cached_property
    def _heldout(self) -> Any:
        return self._given("heldout") if self._parts.heldout else self._given("heldout", "reference")

    @property
    def heldout(self) -> Any:
        """The held-out images, whatever samples are compared with."""
        self._check("heldout")
        return self._heldout

    @cached_property
    def _train(self) -> Any:
        return self._given("train")

    @property
    def train(self) -> Any:
        """All training images: an image set, an array, or `mvar.evaluation.copies.Vectors`."""
        self._check("train")
        return self._train

    @cached_property
    def _extractor(self) -> Extractor:
        if self._parts.extractor is None:
            raise UserError("features: there is no extractor here; allowed: metrics that do without")
        return self._parts.extractor()

    @property
    def extractor(self) -> Extractor:
        """The feature extractor, for images of a metric's own."""
        self._check("features")
        return self._extractor

    @cached_property
    def _extracted(self) -> tuple[Extracted, Extracted]:
        samples, reference = self.samples, Images(self._reference.images, "reference images")
        check_same_size(samples, reference)
        check_counts(samples, reference, self.config)
        first, second = in_turn(self.progress, [len(samples), len(reference)])
        wanted = self._with_spatial, self._with_spatial and self._reference.spatial is None
        extractor = self._extractor  # before others are called: they would wait for one that cannot
        with self._together(self._with_spatial) as (group, heed):
            shared: dict[str, Any] = {"group": group, "heed": heed, "keep": self._keep}
            found = extract(extractor, samples, progress=first, spatial=wanted[0], **shared)
            return found, extract(extractor, reference, progress=second, spatial=wanted[1], **shared)

    def share(self) -> None:
        """Make another process's share of the features that the first one has called for."""
        _ = self._extracted

    @cached_property
    def _features(self) -> Features:
        if not self._keep:  # statistics of spatial ones may be there
            self._keep = True
            self.__dict__.pop("_extracted", None)
        samples, reference = self._extracted
        return Features(samples.features, samples.logits, reference.features, reference.logits)

    @property
    def features(self) -> Features:
        """Features and logits of samples and reference."""
        self._check("features")
        return self._features

    @cached_property
    def reference_statistics(self) -> Statistics:
        """Mean and covariance of the reference's features: of its images, or those that a file of reference has.

        Raises:
            UserError: of another number of features than the extractor has.
        """
        features = self.features
        return fitting(self._reference.features, features.samples.shape[1]) or statistics(features.reference)

    @cached_property
    def _spatial(self) -> tuple[Statistics, Statistics]:
        if not self._with_spatial:  # features without them may be there
            self._with_spatial = True
            self.__dict__.pop("_extracted", None)
        samples, reference = self._extracted
        assert samples.spatial
        theirs = fitting(self._reference.spatial, len(samples.spatial["mu"])) or reference.spatial
        assert theirs
        return samples.spatial, theirs

    @property
    def spatial(self) -> tuple[Statistics, Statistics]:
        """Mean and covariance of the spatial features of samples and of reference.

        Raises:
            UserError: an extractor that has none, or a file of reference of others.
        """
        self._check("spatial")
        return self._spatial

    # The model --------------------------------------------------------------------------------------------------------

    @cached_property
    def _weights(self) -> Any:
        return self._given("weights")

    @property
    def model(self) -> "ScaleTransformer":
        """The generator."""
        self._check("weights")
        return self._weights[0]

    @property
    def quantizer(self) -> "ResidualQuantizer":
        """Of its tokenizer."""
        self._check("weights")
        return self._weights[1]

    @cached_property
    def _tokens(self) -> tuple[Any, Any]:
        return self._given("tokens")

    @property
    def tokens(self) -> Any:
        """The held-out images as tokens `(M, L)`."""
        self._check("tokens")
        return self._tokens[0]

    @property
    def token_labels(self) -> Any:
        """The classes `(M,)` of the held-out images, in the order of their tokens."""
        self._check("tokens")
        return self._tokens[1]


def compute(name: str, metric: Metric, inputs: Inputs, progress: Progress | None = None) -> dict[str, float]:
    """The values of one metric, each a finite float.

    Raises:
        UserError: inputs that it cannot measure, or it gave something else (`BadValue`).
    """
    with inputs.seen_by(metric, progress):
        return checked(name, type(metric), metric.compute(inputs))


def shares(progress: Progress | None, count: int) -> list[Progress]:
    """A callback for each of several metrics, of one progress."""
    return in_turn(progress, [WHOLE] * count)
