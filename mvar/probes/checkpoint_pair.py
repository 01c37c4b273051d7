"""A published generator and its tokenizer, as something to measure: on the images of a folder or on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.checkpoints import published
from mvar.checkpoints.checkpoint_files import split_choice
from mvar.config import DataConfig, RunConfig, RuntimeConfig, SampleConfig, from_dict, override
from mvar.data.crops import to_float
from mvar.data.folders import FolderSource
from mvar.data.sources.imagefolder import warn_of_order
from mvar.data.splits import load_images
from mvar.data.survey import readings_differ
from mvar.errors import UserError
from mvar.evaluation.extractors.contract import kind_of
from mvar.evaluation.images import spread_indices
from mvar.evaluation.judge import Judge, judge_of, other_reference
from mvar.evaluation.reference import check_asked
from mvar.files import file_digest
from mvar.presets import SAMPLING
from mvar.probes.attention_mass import global_layers
from mvar.probes.measurable import MAX_IMAGES, Batch, Measurable, Opened, drawn_images
from mvar.registries import EXTRACTORS
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
    pair: CheckpointPair,
    images_from: Path,
    limit: int = MAX_IMAGES,
    batch_size: int = 0,
    judged: RunConfig | None = None,
) -> Measurable:
    """At most `limit` images of a folder with a subfolder for each class, evenly spread, through the tokenizer.

    `judged` has the evaluation that images which are drawn are judged by, against all images of the folder where it
    names no file of reference, and their size; None: nothing judges them.

    Raises:
        UserError: no such folder; an extractor or a reference that is not there, or one that would have to be trained.
    """
    identity = pair.identity("heldout", limit, batch_size)
    folder = FolderSource(images_from, "images-from")
    warn_of_order(folder.class_names, "images-from: the order of text", "names with leading zeros, with which")
    identity["images"] = folder.fingerprint(range(len(folder.labels)))
    if readings_differ(folder):  # what was measured on the first one is something else
        identity["reading"] = folder.reading

    def open_checkpoint() -> Opened:
        model, tokenizer = pair.load()
        sizes = {
            "image_size": tokenizer.config.patch_sides[-1] * tokenizer.config.downsample,
            "channels": tokenizer.encoder.conv_in.in_channels,
            "num_classes": model.space.num_classes,
        }
        images = load_images(from_dict(DataConfig, _of_folder(folder) | sizes), "heldout")
        chosen, device = spread_indices(len(images), limit), model.pos_1LC.device

        def codes(numbers: Sequence[int]) -> Tensor:
            pixels = np.stack([images.image(int(i), None) for i in chosen[numbers]])
            return tokenizer.encode(to_float(pixels).to(device))

        def batch(numbers: Sequence[int]) -> Batch:
            labels = torch.from_numpy(images.labels[chosen[numbers]]).to(device)
            return labels, tokenizer.quantize.inputs(codes(numbers))

        sample = SAMPLING["fid"]
        judge = partial(_judge, judged) if judged else None
        return Opened(model, tokenizer, sample, len(chosen), batch, codes, judge=judge)

    if judged is None:
        return Measurable(identity, open_checkpoint, splits=("heldout",))
    judged = override(judged, {f"data.{name}": value for name, value in _of_folder(folder).items()})
    _check_extractor(judged)
    check_asked(judged)
    by = (judged.extractor_id, lambda: other_reference(judged))
    return Measurable(identity, open_checkpoint, *by, splits=("heldout",))


def _of_folder(folder: FolderSource) -> dict[str, Any]:
    """Fields of data that are all images of a folder."""
    root = str(folder.root)
    return {"name": "imagefolder", "root": root, "heldout_root": root, "reading": folder.reading}


def _check_extractor(judged: RunConfig) -> None:
    kind = kind_of(judged)
    given = [name for name in EXTRACTORS.names() if not EXTRACTORS.find(name).keeps]
    if kind.keeps:
        raise UserError(
            f"evaluation.extractor: {judged.evaluation.extractor!r} is trained on the training images of a run, a "
            f"checkpoint has none; allowed: {', '.join(given)}"
        )
    try:
        kind.check()
    except UserError as error:
        others = ", ".join(name for name in given if name != judged.evaluation.extractor)
        raise UserError(f"{error}, or another extractor, --evaluation extractor=NAME: {others}") from None


def _judge(judged: RunConfig) -> Judge:
    return judge_of(judged, kind_of(judged).load(Path()))


def drawn_by_checkpoint(pair: CheckpointPair, num_images: int, batch_size: int, sample: SampleConfig) -> Measurable:
    """Images that a checkpoint draws, classes balanced."""
    identity = pair.identity("self", num_images, batch_size) | {"sample": sample.model_dump(mode="json")}

    def open_checkpoint() -> Opened:
        model, tokenizer = pair.load()
        return drawn_images(model, tokenizer, num_images, sample)

    return Measurable(identity, open_checkpoint)
