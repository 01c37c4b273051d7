"""Attention of finished runs and of checkpoints: on held-out images or self-drawn ones, kept, resumable to the bit.

A folder holds `attention.json` (statistics, and what they were measured on) and `attention_images.npy`: float32
`(images, N, H, S, S + 1)`, for every image, layer, head and query scale the mass on every key scale and the entropy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mvar.artefacts import note
from mvar.checkpoints import published
from mvar.checkpoints.checkpoint_files import split_choice
from mvar.config import DataConfig, RuntimeConfig, SampleConfig
from mvar.data.folders import FolderSource
from mvar.data.images import load_images, to_float, warn_of_order
from mvar.data.survey import readings_differ
from mvar.errors import UserError
from mvar.evaluation.images import spread_indices
from mvar.files import file_digest, read_json, write_json
from mvar.presets import SAMPLING
from mvar.probes.attention_mass import AttentionStats, attention_rows, global_layers, summarise
from mvar.rows import Rows
from mvar.runs.store import RunDirectory, Store
from mvar.runs.wiring import Stages
from mvar.sampling import balanced_labels, generate
from mvar.tokenizer.model import Tokenizer
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.training.distributed import resolve_device
from mvar.transformer import ScaleTransformer

MAX_IMAGES = 1000  # of a run's held-out images, evenly spread
CHECKPOINT_BATCH = 8
ROWS = "attention_images.npy"  # float32 `(images, N, H, S, S + 1)`
SUMMARY_ROWS = 64  # images that are read at a time when statistics are made of them

Progress = Callable[[int, int], None]
Batch = tuple[Tensor, Tensor]  # labels (B,), inputs (B, L - n_0, C)


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode and its images: `batch(numbers)` gives labels and inputs on the model's device.

    `sample` says how it draws images, whether those are measured or others.
    """

    model: ScaleTransformer
    tokenizer: Tokenizer
    sample: SampleConfig
    num_images: int
    batch: Callable[[range], Batch]


@dataclass(frozen=True)
class Source:
    """Images to measure on. `identity` (JSON values) is all that decides the result; `open` loads what it takes."""

    identity: dict[str, Any]
    open: Callable[[], Opened]


# Measuring ----------------------------------------------------------------------------------------------------------


def measure(source: Source, folder: Path, progress: Progress | None = None) -> AttentionStats:
    """Attention statistics of a source, kept in a folder; what is there already is not computed again.

    A killed call goes on after the last batch that it wrote, and ends in the same bytes as one that was not killed.

    Raises:
        UserError: a model without global attention, or something that the source lacks.
    """
    if (kept := _kept(source, folder)) is not None:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".attention.lock"):
        kept = _kept(source, folder)  # another process may have been at it
        if kept is None:
            kept = _measure(source, folder, progress)
            write_json(folder / "attention.json", {**kept.to_json(), "measured": source.identity})
        return kept


def _kept(source: Source, folder: Path) -> AttentionStats | None:
    with suppress(FileNotFoundError, UserError, KeyError, TypeError):  # a cache: measuring again mends it
        values = read_json(folder / "attention.json")
        if values["measured"] == source.identity:
            return AttentionStats.from_json(values)
    return None


def _measure(source: Source, folder: Path, progress: Progress | None) -> AttentionStats:
    opened, size = source.open(), source.identity["batch_size"]
    model, count = opened.model, opened.num_images
    if not count:
        raise UserError("attention: no images to measure on; allowed: at least one")
    layers, schedule = global_layers(model), model.schedule
    shape = (count, len(layers), model.config.num_heads, schedule.num_scales, schedule.num_scales + 1)
    with _rows(folder, source.identity, shape) as rows:
        starts = range(rows.done, count, size)
        batches = (opened.batch(range(start, min(start + size, count))) for start in starts)
        for values in attention_rows(model, batches):
            rows.append(values.to(torch.float32).numpy().tobytes())
            if progress:
                progress(rows.done, count)
        note(folder / ROWS, rows.sha256)
        rows.finish()
        rows.forget()
    return summarise(_read(folder / ROWS), tuple(number for number, _ in layers), schedule.sides)


def _rows(folder: Path, identity: dict[str, Any], shape: tuple[int, ...]) -> Rows:
    """The rows of a measurement while it grows: a .npy file that is not full yet."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return Rows(
        folder / "attention_images.partial",
        folder / "attention_images.json",
        {"identity": identity, "shape": list(shape)},
        4 * int(np.prod(shape[1:])),
        final=folder / ROWS,
        header=header.getvalue(),
        every_s=0.0,
    )


def _read(path: Path) -> Iterator[Tensor]:
    rows = np.load(path, mmap_mode="r")
    for start in range(0, len(rows), SUMMARY_ROWS):
        yield torch.from_numpy(rows[start : start + SUMMARY_ROWS].astype(np.float64))


# Sources ------------------------------------------------------------------------------------------------------------


def run_attention(store: Store, run: RunDirectory, progress: Progress | None = None) -> AttentionStats:
    """Attention of a finished run on its held-out images, measured once and kept in the run's directory.

    It rests on the weights: with others it is measured again.

    Raises:
        UserError: no weights, no tokenizer or no tokens, or a model without global attention.
    """
    return measure(heldout_of_run(store, run), run.path, progress)


def heldout_of_run(store: Store, run: RunDirectory, limit: int = MAX_IMAGES, batch_size: int = 0) -> Source:
    """At most `limit` held-out images of a run, evenly spread.

    Raises:
        UserError: a run without weights.
    """
    identity = _run_identity(run, "heldout", limit, batch_size)

    def open_run() -> Opened:
        with _named_if_missing():
            stages = Stages.of_run(store, run)
            tokens, tokenizer = stages.tokens.open("heldout"), stages.train.load_tokenizer()
            model = stages.train.generator
        chosen = spread_indices(len(tokens.tokens), limit)

        def batch(numbers: range) -> Batch:
            codes, labels = (
                torch.from_numpy(np.asarray(a[chosen[numbers]], dtype=np.int64)).to(model.pos_1LC.device)
                for a in (tokens.tokens, tokens.labels)
            )
            return labels, tokenizer.quantize.inputs(codes)

        return Opened(model, tokenizer, _plain(run.config().sample), len(chosen), batch)

    return Source(identity, open_run)


def drawn_by_run(
    store: Store, run: RunDirectory, num_images: int, batch_size: int = 0, sample: SampleConfig | None = None
) -> Source:
    """The first images that a run draws, classes balanced, none rejected; `sample` None: with the run's own settings.

    Raises:
        UserError: a run without weights.
    """
    sample = _plain(sample or run.config().sample)
    identity = _run_identity(run, "self", num_images, batch_size) | {"sample": sample.model_dump(mode="json")}

    def open_run() -> Opened:
        with _named_if_missing():
            stages = Stages.of_run(store, run)
            model, tokenizer = stages.train.generator, stages.train.load_tokenizer()
        return drawn_images(model, tokenizer, num_images, sample)

    return Source(identity, open_run)


def drawn_images(model: ScaleTransformer, tokenizer: Tokenizer, num_images: int, sample: SampleConfig) -> Opened:
    """Images that a model draws: teacher forcing on what it saw while drawing gives the attention of the drawing.

    With guidance that is the half with the class; the half without one is not measured.
    """
    all_labels = balanced_labels(num_images, model.space.num_classes)

    def batch(numbers: range) -> Batch:
        labels = all_labels[list(numbers)].to(model.pos_1LC.device)
        seeds = [(sample.seed, number) for number in numbers]
        return labels, drawn_inputs(model, tokenizer.quantize, labels, seeds, sample)

    return Opened(model, tokenizer, sample, num_images, batch)


def drawn_inputs(
    model: ScaleTransformer,
    quantizer: ResidualQuantizer,
    labels: Tensor,
    seeds: list[tuple[int, int]],
    sample: SampleConfig,
) -> Tensor:
    """Draw an image a label; the inputs `(B, L - n_0, C)` that the model saw, also where codes were mixed."""
    last = model.schedule.num_scales - 1
    inputs = [quantizer.embedding.weight.new_empty(len(labels), 0, model.space.code_channels)]

    def keep(scale: int, latent: Tensor) -> None:
        if scale < last:
            inputs.append(quantizer.next_input(latent, scale + 1))

    generate(model, quantizer, labels, seeds, sample, on_latent=keep)
    return torch.cat(inputs, 1)


@dataclass(frozen=True)
class CheckpointFiles:
    """A published generator and its tokenizer, and what the files cannot tell (`published.load_generator`)."""

    checkpoint: Path
    tokenizer: Path
    patch_sides: tuple[int, ...] | None = None
    num_heads: int | None = None

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
        global_layers(model)  # before the tokenizer is waited for
        tokenizer = published.load_tokenizer(self.tokenizer, patch_sides=model.space.patch_sides)
        published.check_pair(tokenizer.config, model.space)
        device = torch.device(resolve_device(RuntimeConfig()))
        return model.to(device), tokenizer.to(device)


def images_for_checkpoint(
    files: CheckpointFiles, images_from: Path, limit: int = MAX_IMAGES, batch_size: int = 0
) -> Source:
    """At most `limit` images of a folder with a subfolder for each class, evenly spread, through the tokenizer."""
    identity = files.identity("heldout", limit, batch_size)
    folder = FolderSource(images_from, "images-from")
    warn_of_order(folder.class_names, "images-from: the order of text", "names with leading zeros, with which")
    identity["images"] = folder.fingerprint(range(len(folder.labels)))
    if readings_differ(folder):  # what was measured on the first one is something else
        identity["reading"] = folder.reading

    def open_checkpoint() -> Opened:
        model, tokenizer = files.load()
        data = DataConfig(
            name="imagefolder",
            root=str(images_from),
            heldout_root=str(images_from),
            image_size=tokenizer.config.patch_sides[-1] * tokenizer.config.downsample,
            channels=tokenizer.encoder.conv_in.in_channels,
            num_classes=model.space.num_classes,
            reading=folder.reading,
        )
        images = load_images(data, "heldout")
        chosen, device = spread_indices(len(images), limit), model.pos_1LC.device

        def batch(numbers: range) -> Batch:
            pixels = np.stack([images.image(int(i), None) for i in chosen[numbers]])
            labels = torch.from_numpy(images.labels[chosen[numbers]]).to(device)
            return labels, tokenizer.quantize.inputs(tokenizer.encode(to_float(pixels).to(device)))

        return Opened(model, tokenizer, SAMPLING["fid"], len(chosen), batch)

    return Source(identity, open_checkpoint)


def drawn_by_checkpoint(files: CheckpointFiles, num_images: int, batch_size: int, sample: SampleConfig) -> Source:
    """Images that a checkpoint draws, classes balanced."""
    identity = files.identity("self", num_images, batch_size) | {"sample": sample.model_dump(mode="json")}

    def open_checkpoint() -> Opened:
        model, tokenizer = files.load()
        return drawn_images(model, tokenizer, num_images, sample)

    return Source(identity, open_checkpoint)


def _run_identity(run: RunDirectory, source: str, limit: int, batch_size: int) -> dict[str, Any]:
    if not run.weights.is_file():
        raise UserError(f"{run.weights}: not there; allowed: a run that has finished training")
    size = batch_size or run.config().runtime.sample_batch
    return {"source": source, "limit": limit, "batch_size": size, "weights_sha256": file_digest(run.weights)}


def _plain(sample: SampleConfig) -> SampleConfig:
    """The settings without rejection: every image that is drawn counts."""
    return sample.model_copy(update={"candidates": 1})


@contextmanager
def _named_if_missing() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not there; the command that made the run makes it again") from None
