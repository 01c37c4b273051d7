"""The images of an evaluation: drawn in rounds by all processes of a run, written by the first one.

A round gives each process one batch. An image depends on its number alone and the batches are those of one process, so
the bytes do not depend on how many processes there are; one alone is a team of one and takes the same way.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar import layout
from mvar.artefacts import complain_of, write_artefact
from mvar.config import RunConfig, override
from mvar.data import npz
from mvar.data.crops import to_uint8
from mvar.errors import UserError, warn
from mvar.files import atomic_write, known_digest, write_json
from mvar.rows import Rows
from mvar.runs.at_hand import drawn_at_once
from mvar.runs.documents import read_or_warn
from mvar.runs.environment import execution_of
from mvar.runs.measured import lacking
from mvar.runs.stages.contract import RunStage, room_made_by
from mvar.runs.stages.reject import LabelScore, RejectStage
from mvar.runs.stages.train import TrainStage
from mvar.runs.states import Stopped
from mvar.sampling import balanced_labels, generate, keep_best
from mvar.sampling.graphs import Graphs
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
    graphs: Graphs | None = None,
) -> np.ndarray:
    """Draw and decode one image a label, `(B, H, W, channels)` uint8; with a `score`, the best of the candidates."""

    def draw(streams: list[tuple[int, ...]]) -> np.ndarray:
        drawn = generate(model, tokenizer.quantize, labels, streams, config.sample, check=False, graphs=graphs)
        pixels = tokenizer.decode(drawn.latent).cpu()
        drawn.check()
        return np.ascontiguousarray(to_uint8(pixels).permute(0, 2, 3, 1).numpy())

    if score is None:
        return draw(seeds)
    return keep_best(draw, lambda images: score(images, labels), seeds, config.sample.candidates)


@dataclass(frozen=True)
class SampleStage(RunStage):
    """Draws the class-balanced images of an evaluation; a killed call, or a stopped one, is gone on with by the next.

    Writes `samples.npz` (`arr_0` uint8 `(N, H, W, channels)`, the layout of ADM's evaluator, and `labels`),
    `grid.png` and `timing.json`.

    Args:
        directory: of the run.
        config: the run, with the settings of the evaluation.
        train: the generator, and the tokenizer that it draws with.
        reject: what picks an image of several candidates.
    """

    train: TrainStage
    reject: RejectStage
    name = "sample"

    @property
    def folder(self) -> Path:
        """Of the evaluation's images."""
        return self.directory.samples(self.config.evaluation_id)

    def run(self) -> None:
        """Draw what is missing; damaged weights are told first, also where all images are there. As `make`."""
        _ = self.artist
        super().run()

    def is_done(self) -> bool:
        """Whether the images are there, and can be read where somebody is going to look at them."""
        if not self._finished.is_file():
            return False
        there = self.directory.evaluations().get(self.config.evaluation_id)
        if there and not lacking(there, self.config):
            return True
        try:
            self.read()
        except UserError as error:
            warn(f"{error}; they are drawn again")
            return False
        return True

    def make(self) -> None:
        """Draw what is missing. The first process calls it, and calls the others, which `take_part`.

        Raises:
            Stopped: one of the processes was asked to stop. Whole rounds are kept.
        """
        model, tokenizer = self.artist  # before the others are called: they would wait for one that cannot
        config, folder = self.config, self.folder
        folder.mkdir(parents=True, exist_ok=True)
        self.reject.run()
        weights = self.directory.weights_of(config.sample.ema)
        plan = {"evaluation": config.evaluation_id, "weights_sha256": known_digest(weights)}
        row_bytes, extra = math.prod(self._image_shape), {"sample_s": 0.0}
        with Rows(
            folder / layout.SAMPLES_PARTIAL, folder / layout.SAMPLES_PROGRESS, plan, row_bytes, every_s=0.0, extra=extra
        ) as rows:
            self._draw(model, tokenizer, rows)
            if rows.done < self._count:
                raise Stopped(f"sample: image {rows.done} of {self._count}")
            self._finish(rows)

    def take_part(self, done: int) -> None:
        """Draw another process's share of what the first one has called for, from image `done` on."""
        model, tokenizer = self.artist
        self._draw_rounds(model, tokenizer, done, lambda found: None)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Images `(N, H, W, channels)` uint8, read where they are used, and labels `(N,)` of the evaluation.

        Raises:
            UserError: missing, damaged, or not as many and as large as the evaluation has them.
        """
        path = self._finished
        try:
            with open(path, "rb") as file:
                complain_of(path, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {npz.AGAIN}") from None
        with npz.opened(path) as archive:
            pixels = npz.mapped(archive, "arr_0", "uint8", (self._count, *self._image_shape))
            return pixels, npz.whole(archive, "labels", "<i8", (self._count,))

    def timing(self) -> dict[str, Any]:
        """How the images were drawn; empty where that is no longer known."""
        return read_or_warn(self.folder / layout.TIMING)

    @property
    def _finished(self) -> Path:
        return self.folder / layout.SAMPLES_NPZ

    @property
    def _count(self) -> int:
        return self.config.evaluation.num_images

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        data = self.config.data
        return (data.image_size, data.image_size, data.channels)

    @property
    def _labels(self) -> torch.Tensor:
        return balanced_labels(self._count, self.config.data.num_classes)

    @cached_property
    def artist(self) -> tuple[ScaleTransformer, Tokenizer]:
        """The generator and the tokenizer that draw; loaded once, for who measures what they drew too."""
        tokenizer = self.train.tokenizer.load()
        return self.train.generator_of(self.config.sample.ema), tokenizer

    @cached_property
    def _batch(self) -> int:
        """Images that each process draws at once: as the first one has decided, where there are several."""
        return drawn_at_once(self.config)

    def _draw(self, model: ScaleTransformer, tokenizer: Tokenizer, rows: Rows) -> None:
        """Draw, together with the other processes where there are any, and append what they draw."""
        team = distributed.current_team()
        if team:
            config = override(self.config, {"runtime.sample_batch": self._batch})
            message = {"sample": config.model_dump(mode="json"), "done": rows.done}
            team.call({**message, "run": str(self.directory.path)})
        report = self.watch.report(self.name)

        def keep(found: _Round) -> None:
            rows.extra["sample_s"] += found.seconds
            rows.append(found.images.tobytes())
            report(found.stop, self._count)

        self._draw_rounds(model, tokenizer, rows.done, keep)

    def _draw_rounds(
        self, model: ScaleTransformer, tokenizer: Tokenizer, done: int, keep: Callable[["_Round"], None]
    ) -> None:
        """Draw from image `done` on, a batch a process and round; `keep` is called in the first process only.

        Returns early, in all processes after the same round, where one was asked to stop.
        """
        config, score = self.config, self.reject.load()
        graphs = Graphs.of(config.runtime, model.pos_1LC.device)
        count, size, labels = self._count, self._batch, self._labels
        with room_made_by("sample_batch", size), distributed.together(config.runtime) as group:
            while done < count and not group.any(self.watch.should_stop()):
                began = time.perf_counter()
                start = min(done + group.rank * size, count)
                stop = min(start + size, count)
                # of one size in all processes, as collectives want it: the last batch fills a part, or nothing, of it
                batch = torch.zeros(size, *self._image_shape, dtype=torch.uint8)
                if start < stop:
                    seeds = [(config.sample.seed, i) for i in range(start, stop)]
                    images = draw_images(model, tokenizer, labels[start:stop], seeds, config, score, graphs)
                    batch[: stop - start] = torch.from_numpy(images)
                seconds = group.sum(time.perf_counter() - began)
                parts = group.gather(batch)
                first, done = done, min(done + group.world * size, count)
                if parts:
                    keep(_Round(first, done, torch.cat(parts)[: done - first].numpy(), seconds))

    def _finish(self, rows: Rows) -> None:
        """Write what becomes of all rows, the images themselves last."""
        runtime = self.config.runtime
        execution = execution_of(runtime, self.train.tokenizer.device)
        timing = {"sample_s": rows.extra["sample_s"], "batch_size": self._batch}
        timing |= {"processes": execution["processes"], "execution": execution}
        write_json(self.folder / layout.TIMING, timing)
        pixels = np.memmap(rows.partial, np.uint8, "r", shape=(self._count, *self._image_shape))
        labels = self._labels.numpy()
        save_grid(self.folder / layout.GRID, _grid_images(pixels, labels))
        with write_artefact(self._finished) as file:
            np.savez(file, arr_0=pixels, labels=labels)
        rows.forget()


@dataclass(frozen=True)
class _Round:
    """What all processes have drawn in a round: images `start` to `stop` - 1, and process-seconds spent on them."""

    start: int
    stop: int
    images: np.ndarray
    seconds: float


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
