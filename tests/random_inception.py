"""A file with the keys and shapes of torch-fidelity's Inception and random weights."""

from pathlib import Path
from unittest import mock

import torch
from torch import nn


def write_inception(path: Path) -> None:
    """Write it; nothing is downloaded."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    kind = module.FeatureExtractorInceptionV3
    with (
        mock.patch.object(module, "load_state_dict_from_url", lambda *args, **kwargs: {}),
        mock.patch.object(kind, "load_state_dict", lambda self, state: None),
        mock.patch.object(nn.init, "kaiming_uniform_", lambda weight, **kwargs: weight.data.normal_(0, 0.02)),
    ):
        network = kind("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
