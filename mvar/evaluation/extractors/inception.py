"""torch-fidelity's port of the TensorFlow Inception of FID, from a local file: neither trained nor downloaded."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvar.errors import UserError
from mvar.evaluation.extractors.contract import ExtractorKind, channels_last
from mvar.evaluation.extractors.state import state_of
from mvar.files import expand

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
MAX_INCEPTION_BYTES = 512 << 20  # the file has 92 MiB

# ADM's `mixed_6/conv`, in torch-fidelity's names (those of its own conversion of the weights); its output is rectified.
SPATIAL_LAYER = "Mixed_6d.branch1x1"


class InceptionKind(ExtractorKind):
    """Inception of 2015: 2048 features (pool3) and 1008 logits, in an order of its own; grey images become three."""

    def check(self) -> None:
        """Refuse a file that is not set or not there."""
        path = self.config.evaluation.inception_weights
        if not path:
            raise UserError("evaluation.inception_weights: not set; allowed: the file that extractor=inception needs")
        file = expand(path)
        if not file.is_file():
            what = " (a directory)" if file.is_dir() else ""
            raise UserError(f"evaluation.inception_weights: no file {str(file)!r}{what}; allowed: a file that is there")

    def network(self, directory: Path) -> tuple[nn.Module, float | None]:
        """Inception, from `evaluation.inception_weights`."""
        return inception_network(self.config.evaluation.inception_weights), None

    def forward(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, 2048)` and logits `(B, 1008)`."""
        return inception_forward(network, images)

    def forward_spatial(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits, and 2,023 spatial features: 7 channels of the 17 x 17 map of `SPATIAL_LAYER`."""
        return inception_spatial(network, images)


def inception_network(weights: str | None) -> nn.Module:
    """Inception with its weights, from a local file.

    Args:
        weights: path of the weights file; `~` and environment variables are expanded. Never downloaded.

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
    return network


def _only_tensors(path: Path) -> io.BytesIO:
    """A file's tensors, written anew in memory: torch-fidelity unpickles whatever it is given."""
    clean = io.BytesIO()
    torch.save(state_of(path, MAX_INCEPTION_BYTES), clean)
    clean.seek(0)
    return clean


def inception_forward(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits of images uint8 `(B, 1 or 3, H, W)`."""
    return network(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)


def inception_spatial(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, logits and spatial features `(B, 2023)` of images uint8 `(B, 1 or 3, H, W)`."""
    maps: list[Tensor] = []

    def keep(*told: Any) -> None:
        maps.append(told[-1])

    hook = network.get_submodule(SPATIAL_LAYER).register_forward_hook(keep)
    try:
        features, logits = inception_forward(network, images)
    finally:
        hook.remove()
    return features, logits, channels_last(maps[-1])
