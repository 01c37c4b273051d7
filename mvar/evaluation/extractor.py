"""A feature extractor in use: one interface for the small classifier, for Inception and for a user's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mvar.errors import UserError
from mvar.evaluation.images import Images
from mvar.progress import Progress

Spatial = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor, Tensor]]


class Extractor(nn.Module):
    """Maps uint8 images to the features that FID, KID, precision and recall compare, and to the logits of IS.

    Attributes:
        id: identity of the extractor, `RunConfig.extractor_id`; metrics of different extractors do not compare.
        heldout_accuracy: share of held-out images that it classifies rightly, 0 to 1; None where it does not apply.
        knows_labels: whether its logits are over the classes of the data set.
        channels: of the images that it takes.
        spatial: what makes spatial features of a batch beside the others; None where it has none.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]],
        *,
        id: str,
        channels: int,
        heldout_accuracy: float | None = None,
        knows_labels: bool = False,
        spatial: "Spatial | None" = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self._forward = forward
        self.id = id
        self.channels = channels
        self.heldout_accuracy = heldout_accuracy
        self.knows_labels = knows_labels
        self._spatial = spatial

    @property
    def has_spatial(self) -> bool:
        """Whether it has spatial features."""
        return self._spatial is not None

    @property
    def device(self) -> torch.device:
        """Where the weights are; a network without any works on the CPU."""
        return next((tensor.device for tensor in self.network.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, F)` and logits `(B, K)`, both float64, of uint8 images `(B, ch, H, W)`.

        float64 because FID takes the difference of nearly equal traces: with fp32 means it is right to 1e-6 only.
        """
        features, logits = self._forward(self.network, self._checked(images))
        return features.double(), logits.double()

    @torch.no_grad()
    def with_spatial(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and spatial features `(B, S)`: a map of the network, flattened place by place, float64.

        Raises:
            UserError: an extractor that has none.
        """
        if self._spatial is None:
            raise UserError(
                "evaluation.extractor: this one has no spatial features, which sFID needs; allowed: inception, "
                "classifier, or one of one's own with `forward_spatial`"
            )
        features, logits, spatial = self._spatial(self.network, self._checked(images))
        return features.double(), logits.double(), spatial.double()

    def _checked(self, images: Tensor) -> Tensor:
        """The images on the network's device; a `UserError` where it does not take such."""
        if images.dtype != torch.uint8:
            raise UserError(f"images: pixels of type {images.dtype}; allowed: uint8, 0 to 255")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise UserError(
                f"images: shape {tuple(images.shape)}; allowed: (images, {self.channels}, height, width), "
                "the channels that the feature extractor was made for"
            )
        return images.to(self.device)

    def extract(self, images: Images, batch_size: int = 64, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
        """Features `(N, F)` and logits `(N, K)` of a whole set, float64 on the CPU."""
        parts = [[part.cpu() for part in self(batch)] for batch in images.batches(batch_size, progress)]
        features, logits = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(logits)
