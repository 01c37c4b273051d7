"""A published generator and its tokenizer, as something to measure: on the images of a folder or on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.checkpoints import published
from mvar.checkpoints.checkpoint_files import split_choice
from mvar.config import DataConfig, RuntimeConfig, SampleConfig, from_dict
from mvar.data.crops import to_float
from mvar.data.folders import FolderSource
from mvar.data.sources.imagefolder import warn_of_order
from mvar.data.splits import load_images
from mvar.data.survey import readings_differ
from mvar.errors import UserError
from mvar.evaluation.images import spread_indices
from mvar.files import file_digest
from mvar.presets import SAMPLING
from mvar.probes.attention_mass import global_layers
from mvar.probes.measurable import MAX_IMAGES, Batch, Measurable, Opened, drawn_images
from mvar.tokenizer.model import Tokenizer
from mvar.training.distributed import resolve_device
from mvar.transformer import ScaleTransformer

CHECKPOINT_BATCH = 8


@dataclass(frozen=True)
class CheckpointPair:
    """A published generator and its tokenizer, and what the files cannot tell (`published.load_generator`)."""

    checkpoint: Path
    tokenizer: Path
    patch_sides: tuple[int, ...] | None = None
    num_heads: int | None = None
    for_attention: bool = True  # a model without global attention is refused; no part of the identity

    def identity(self, source: str, limit: int, batch_size: int) -> dict[str, Any]:
        """What decides a measurement on these files.

        Raises:
            UserError: a file that is not there.
        """
        values: dict[str, Any] = {"source": source, "limit": limit, "batch_size": batch_size or CHECKPOINT_BATCH}
        for name in ("checkpoint", "tokenizer"):
            path, choice = split_choice(getattr(self, name))
            if not path.is_file():
                raise UserError(f"{name}: no file {str(path)!r}; allowed: a .pth or .safetensors file")
            values[f"{name}_sha256"] = file_digest(path)
            if choice:
                values[f"{name}_weights"] = choice
        return values | {"patch_sides": self.patch_sides and list(self.patch_sides), "num_heads": self.num_heads}

    def load(self) -> tuple[ScaleTransformer, Tokenizer]:
        """Model and tokenizer, on a GPU where there is one.

        Raises:
            UserError: files that cannot be used, that do not fit each other, or a model without global attention.
        """
        model, _ = published.load_generator(self.checkpoint, patch_sides=self.patch_sides, num_heads=self.num_heads)
        if self.for_attention:
            global_layers(model)  # before the tokenizer is waited for
        tokenizer = published.load_tokenizer(self.tokenizer, patch_sides=model.space.patch_sides)
        published.check_pair(tokenizer.config, model.space)
        device = torch.device(resolve_device(RuntimeConfig()))
        return model.to(device), tokenizer.to(device)


def images_for_checkpoint(
    pair: CheckpointPair, images_from: Path, limit: int = MAX_IMAGES, batch_size: int = 0
) -> Measurable:
    """At most `limit` images of a folder with a subfolder for each class, evenly spread, through the tokenizer."""
    identity = pair.identity("heldout", limit, batch_size)
    folder = FolderSource(images_from, "images-from")
    warn_of_order(folder.class_names, "images-from: the order of text", "names with leading zeros, with which")
    identity["images"] = folder.fingerprint(range(len(folder.labels)))
    if readings_differ(folder):  # what was measured on the first one is something else
        identity["reading"] = folder.reading

    def open_checkpoint() -> Opened:
        model, tokenizer = pair.load()
        data = {
            "name": "imagefolder",
            "root": str(images_from),
            "heldout_root": str(images_from),
            "image_size": tokenizer.config.patch_sides[-1] * tokenizer.config.downsample,
            "channels": tokenizer.encoder.conv_in.in_channels,
            "num_classes": model.space.num_classes,
            "reading": folder.reading,
        }
        images = load_images(from_dict(DataConfig, data), "heldout")
        chosen, device = spread_indices(len(images), limit), model.pos_1LC.device

        def codes(numbers: Sequence[int]) -> Tensor:
            pixels = np.stack([images.image(int(i), None) for i in chosen[numbers]])
            return tokenizer.encode(to_float(pixels).to(device))

        def batch(numbers: Sequence[int]) -> Batch:
            labels = torch.from_numpy(images.labels[chosen[numbers]]).to(device)
            return labels, tokenizer.quantize.inputs(codes(numbers))

        return Opened(model, tokenizer, SAMPLING["fid"], len(chosen), batch, codes)

    return Measurable(identity, open_checkpoint)


def drawn_by_checkpoint(pair: CheckpointPair, num_images: int, batch_size: int, sample: SampleConfig) -> Measurable:
    """Images that a checkpoint draws, classes balanced."""
    identity = pair.identity("self", num_images, batch_size) | {"sample": sample.model_dump(mode="json")}

    def open_checkpoint() -> Opened:
        model, tokenizer = pair.load()
        return drawn_images(model, tokenizer, num_images, sample)

    return Measurable(identity, open_checkpoint)
