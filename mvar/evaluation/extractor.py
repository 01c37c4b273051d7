"""Feature extractors: one interface for the small classifier and for Inception."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mvar.checkpoints.pickles import complain_of_tensors, read_pickle
from mvar.checkpoints.weights import complain_of_values
from mvar.errors import UserError
from mvar.evaluation.images import Images
from mvar.files import expand
from mvar.progress import Progress

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
MAX_INCEPTION_BYTES = 512 << 20  # the file has 92 MiB


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
        """Where the weights are."""
        return next(self.network.parameters()).device

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


def inception_extractor(weights: str | None, *, id: str, channels: int) -> Extractor:
    """torch-fidelity's port of the TensorFlow Inception of FID (2048 features, pool3), from a local file.

    Args:
        weights: path of the weights file; `~` and environment variables are expanded. Never downloaded.
        id: identity of the extractor.
        channels: of the images, 1 or 3; grey images are repeated to three channels.

    Raises:
        UserError: no path, no such file, or a file that does not hold these weights.
    """
    wanted = f"allowed: the path of {INCEPTION_FILE} (torch-fidelity's pt_inception weights), which is not downloaded"
    if not weights:
        raise UserError(f"evaluation.inception_weights: not set; {wanted}")
    path = expand(weights)
    if not path.is_file():
        raise UserError(f"evaluation.inception_weights: no file {str(path)!r}; {wanted}")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=_only_tensors(path)
        )
    except Exception as error:  # the kinds of damage are many (zip, pickle, keys, shapes) and all mean one thing
        text = str(error).removeprefix(f"checkpoint: {path} ").removeprefix("checkpoint: ")
        reason = (text.splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"evaluation.inception_weights: cannot use {str(path)!r} ({reason}); {wanted}") from None
    return Extractor(network, _inception_forward, id=id, channels=channels)


def _only_tensors(path: Path) -> io.BytesIO:
    """A file's tensors, written anew in memory: torch-fidelity unpickles whatever it is given.

    The file is read once. What is checked, loaded without its objects and handed on are these same bytes, whatever
    becomes of the file meanwhile.
    """
    with path.open("rb") as file:
        content = file.read(MAX_INCEPTION_BYTES + 1)
    if len(content) > MAX_INCEPTION_BYTES:
        raise UserError(f"more than {MAX_INCEPTION_BYTES} bytes")
    state = read_pickle(path, content)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError("no state dict")
    complain_of_tensors(path, state, len(content))
    complain_of_values(path, state)
    clean = io.BytesIO()
    torch.save(dict(state), clean)
    clean.seek(0)
    return clean


def _inception_forward(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    return network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)
