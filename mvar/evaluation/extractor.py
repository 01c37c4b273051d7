"""A feature extractor in use: one interface for the small classifier, for Inception and for a user's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mvar.errors import UserError
from mvar.evaluation.images import Images
from mvar.progress import Progress


class Extractor(nn.Module):
    """Maps uint8 images to the features that FID, KID, precision and recall compare, and to the logits of IS.

    Attributes:
        id: identity of the extractor, `RunConfig.extractor_id`; metrics of different extractors do not compare.
        heldout_accuracy: share of held-out images that it classifies rightly, 0 to 1; None where it does not apply.
        knows_labels: whether its logits are over the classes of the data set.
        channels: of the images that it takes.
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
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self._forward = forward
        self.id = id
        self.channels = channels
        self.heldout_accuracy = heldout_accuracy
        self.knows_labels = knows_labels

    @property
    def device(self) -> torch.device:
        """Where the weights are; a network without any works on the CPU."""
        return next((tensor.device for tensor in self.network.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, F)` and logits `(B, K)`, both float64, of uint8 images `(B, ch, H, W)`.

        float64 because FID takes the difference of nearly equal traces: with fp32 means it is right to 1e-6 only.
        """
        if images.dtype != torch.uint8:
            raise UserError(f"images: pixels of type {images.dtype}; allowed: uint8, 0 to 255")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise UserError(
                f"images: shape {tuple(images.shape)}; allowed: (images, {self.channels}, height, width), "
                "the channels that the feature extractor was made for"
            )
        features, logits = self._forward(self.network, images.to(self.device))
        return features.double(), logits.double()

    def extract(self, images: Images, batch_size: int = 64, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
        """Features `(N, F)` and logits `(N, K)` of a whole set, float64 on the CPU."""
        parts = [[part.cpu() for part in self(batch)] for batch in images.batches(batch_size, progress)]
        features, logits = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(logits)
