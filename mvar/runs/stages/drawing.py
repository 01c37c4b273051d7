"""The images of an evaluation: drawn in rounds by all processes of a run, written by the first one.

A round gives each process one batch. An image depends on its number alone and the batches are those of one process, so
the bytes do not depend on how many processes there are; one alone is a team of one and takes the same way.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mvar.artefacts import complain_of, write_artefact
from mvar.config import RunConfig
from mvar.data.crops import to_uint8
from mvar.errors import UserError, warn
from mvar.files import atomic_write, known_digest, write_json
from mvar.rows import Rows
from mvar.runs import arrays
from mvar.runs.environment import execution_of
from mvar.runs.stages.selection import LabelScore, load_scorer, prepare_scorer
from mvar.runs.stages.shared import Context
from mvar.runs.states import Stopped
from mvar.runs.store import RunDirectory
from mvar.sampling import balanced_labels, generate, keep_best
from mvar.tokenizer.model import Tokenizer
from mvar.training import distributed
from mvar.transformer import ScaleTransformer

GRID_ROWS = 8


def draw_images(
    model: ScaleTransformer,
    tokenizer: Tokenizer,
    labels: torch.Tensor,
    seeds: list[tuple[int, int]],
    config: RunConfig,
    score: LabelScore | None = None,
) -> np.ndarray:
    """Draw and decode one image a label, `(B, H, W, channels)` uint8; with a `score`, the best of the candidates."""

    def draw(streams: list[tuple[int, ...]]) -> np.ndarray:
        drawn = generate(model, tokenizer.quantize, labels, streams, config.sample)
        with torch.no_grad():
            pixels = tokenizer.decode(drawn.latent).cpu()
        return np.ascontiguousarray(to_uint8(pixels).permute(0, 2, 3, 1).numpy())

    if score is None:
        return draw(seeds)
    return keep_best(draw, lambda images: score(images, labels), seeds, config.sample.candidates)


def sample(context: Context, directory: RunDirectory, model: ScaleTransformer, tokenizer: Tokenizer) -> None:
    """Draw the class-balanced images of an evaluation; a killed call, or a stopped one, is gone on with by the next.

    Writes `samples.npz` (`arr_0` uint8 `(N, H, W, channels)`, the layout of ADM's evaluator, and `labels`),
    `grid.png` and `timing.json`. The first process calls it, and calls the others, which `take_part`.

    Raises:
        Stopped: one of the processes was asked to stop. Whole rounds are kept.
    """
    config = context.config
    folder = directory.samples(config.evaluation_id)
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / "samples.npz"
    if finished.is_file():
        if config.evaluation_id in directory.evaluations():
            return  # nobody is going to look at them
        try:
            read_samples(directory, config)
            return
        except UserError as error:
            warn(f"{error}; they are drawn again")
    count, side = config.evaluation.num_images, config.data.image_size
    prepare_scorer(context)
    plan = {"evaluation": config.evaluation_id, "weights_sha256": known_digest(directory.weights)}
    row_bytes = side * side * config.data.channels
    with Rows(
        folder / "partial.bin", folder / "partial.json", plan, row_bytes, every_s=0.0, extra={"sample_s": 0.0}
    ) as rows:
        team = distributed.current_team()
        if team:
            team.call({"sample": config.model_dump(mode="json"), "done": rows.done, "run": str(directory.path)})

        def keep(found: _Round) -> None:
            rows.extra["sample_s"] += found.seconds
            rows.append(found.images.tobytes())
            context.progress("sample", found.stop, count)

        _draw_rounds(context, model, tokenizer, rows.done, keep)
        if rows.done < count:
            raise Stopped(f"sample: image {rows.done} of {count}")
        timing = {"sample_s": rows.extra["sample_s"], "batch_size": config.runtime.sample_batch}
        execution = execution_of(config.runtime, context.device)
        write_json(folder / "timing.json", timing | {"processes": execution["processes"], "execution": execution})
        pixels = np.memmap(rows.partial, np.uint8, "r", shape=(count, side, side, config.data.channels))
        labels = balanced_labels(count, config.data.num_classes).numpy()
        save_grid(folder / "grid.png", _grid_images(pixels, labels))
        with write_artefact(finished) as file:
            np.savez(file, arr_0=pixels, labels=labels)
        rows.forget()


def read_samples(directory: RunDirectory, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, H, W, channels)` uint8 and labels `(N,)` of an evaluation, from one open file.

    Raises:
        UserError: missing, damaged, or not as many and as large as the evaluation has them.
    """
    path, side = directory.samples(config.evaluation_id) / "samples.npz", config.data.image_size
    try:
        with open(path, "rb") as file:
            complain_of(path, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {arrays.AGAIN}") from None
    count = config.evaluation.num_images
    with arrays.opened(path) as archive:
        pixels = arrays.whole(archive, "arr_0", "uint8", (count, side, side, config.data.channels))
        return pixels, arrays.whole(archive, "labels", "<i8", (count,))


def take_part(context: Context, model: ScaleTransformer, tokenizer: Tokenizer, done: int) -> None:
    """Draw another process's share of a `sample` that the first one has called for, from image `done` on."""
    _draw_rounds(context, model, tokenizer, done, lambda found: None)


@dataclass(frozen=True)
class _Round:
    """What all processes have drawn in a round: images `start` to `stop` - 1, and process-seconds spent on them."""

    start: int
    stop: int
    images: np.ndarray
    seconds: float


def _draw_rounds(
    context: Context, model: ScaleTransformer, tokenizer: Tokenizer, done: int, keep: Callable[[_Round], None]
) -> None:
    """Draw from image `done` on, a batch a process and round; `keep` is called in the first process only.

    Returns early, in all processes after the same round, where one was asked to stop.
    """
    config, score = context.config, load_scorer(context)
    count, size, side = config.evaluation.num_images, config.runtime.sample_batch, config.data.image_size
    labels = balanced_labels(count, config.data.num_classes)
    with distributed.together(config.runtime) as group:
        while done < count and not group.any(context.should_stop()):
            began = time.perf_counter()
            start = min(done + group.rank * size, count)
            stop = min(start + size, count)
            # of one size in all processes, as collectives want it: the last batch fills a part, or nothing, of it
            batch = torch.zeros(size, side, side, config.data.channels, dtype=torch.uint8)
            if start < stop:
                seeds = [(config.sample.seed, i) for i in range(start, stop)]
                images = draw_images(model, tokenizer, labels[start:stop], seeds, config, score)
                batch[: stop - start] = torch.from_numpy(images)
            seconds = group.sum(time.perf_counter() - began)
            parts = group.gather(batch)
            first, done = done, min(done + group.world * size, count)
            if parts:
                keep(_Round(first, done, torch.cat(parts)[: done - first].numpy(), seconds))


def _grid_images(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Up to `GRID_ROWS` images of each of the first ten classes, class by class: `(rows, columns, H, W, channels)`."""
    classes = np.unique(labels)[:10]
    rows = min(GRID_ROWS, *(int((labels == c).sum()) for c in classes))
    columns = [pixels[np.flatnonzero(labels == c)[:rows]] for c in classes]
    return np.stack(columns, axis=1)


def save_grid(path: Path, images: np.ndarray) -> None:
    """Write images `(rows, columns, H, W, channels)` uint8 as one PNG; small ones enlarged by whole factors."""
    from torchvision.utils import make_grid, save_image

    factor = max(1, 32 // images.shape[2])
    enlarged = images.repeat(factor, axis=2).repeat(factor, axis=3)
    flat = torch.from_numpy(enlarged.reshape(-1, *enlarged.shape[2:])).movedim(-1, 1).float() / 255
    with atomic_write(path) as file:
        save_image(make_grid(flat, nrow=images.shape[1], padding=2, pad_value=0.5), file, format="png")
