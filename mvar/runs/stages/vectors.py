"""The training images of a stored data set as the search for near-copies compares them: decoded once for each set.

Every evaluation compares its samples with all training images, and so do the floors. Of ImageNet they take 3.9 GB in
that form, and hours to be decoded anew. One stage a data set: `vectors.bin`, `meta.json`; before the latter is there,
`vectors.bin.partial` and `progress.json`, from which an interrupted build goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar import layout
from mvar.config import Config, DataConfig
from mvar.data.crops import ImageSet
from mvar.data.rounds import in_rounds
from mvar.data.sources.contract import find
from mvar.data.splits import load_images
from mvar.errors import UserError
from mvar.evaluation.copies import Vectors, compared
from mvar.files import known_digest
from mvar.rows import Rows
from mvar.runs.documents import read_document, write_document
from mvar.runs.stages.contract import SharedStage

BATCH_SIZE = 256


@dataclass(frozen=True)
class VectorStage(SharedStage):
    """Writes all training images in that form; nothing of sources that have them in memory anyway.

    Args:
        data: whose training images.
        num_workers: threads that decode images; 0 decodes between batches.
        checked: by folder, what rows are of that were held against the images in this job; `load` adds to it.
    """

    data: DataConfig
    num_workers: int
    checked: dict[Path, dict[str, Any]]
    name = "vectors"

    @property
    def origin(self) -> Mapping[str, Config]:
        """The data."""
        return {"data": self.data}

    def is_done(self) -> bool:
        """Whether they are there, and of the files that are there now."""
        if find(self.data.name).in_memory:
            return True
        return self._are_of(self._plan)

    def _are_of(self, plan: Mapping[str, Any]) -> bool:
        """Whether there are rows of what a plan says."""
        meta = _read(self.directory.path / layout.META)
        return {name: meta.get(name) for name in plan} == plan

    def build(self) -> Mapping[str, float]:
        """Decode what is missing.

        Raises:
            UserError: an image that cannot be read.
        """
        folder, (total, width) = self.directory.path, self._plan["shape"]
        report = self.watch.heed(self.name)
        (folder / layout.META).unlink(missing_ok=True)  # of other files: it must not vouch for these rows
        with Rows(
            folder / layout.VECTORS_PARTIAL, folder / layout.PROGRESS, self._plan, width, final=folder / layout.VECTORS
        ) as rows:
            rounds = in_rounds(
                self._pixels, total, BATCH_SIZE, _compared, start=rows.done, num_workers=self.num_workers
            )
            for (found,) in rounds:
                rows.append(found.numpy().tobytes(), is_last=rows.done + len(found) == total)
                report(rows.done, total)
            write_document(folder / layout.META, {**self._plan, "sha256": rows.finish()})
            rows.forget()
        return {}

    def load(self) -> Vectors | None:
        """All training images, as `Vectors`; made where they are missing or of other files, for which the files are
        looked at once a job. None where they are in memory anyway.

        Raises:
            UserError: an image that cannot be read; a damaged file.
        """
        self.run()
        if find(self.data.name).in_memory:
            return None
        path, (total, width) = self.directory.path / layout.VECTORS, self._plan["shape"]
        sha256 = read_document(self.directory.path / layout.META)["sha256"]
        if not path.is_file() or path.stat().st_size != total * width or known_digest(path) != sha256:
            raise UserError(f"{path}: missing or damaged (wrong checksum); remove its folder and it is made again")
        self.checked[self.directory.path] = self._plan
        return Vectors(np.memmap(path, np.uint8, "r", shape=(total, width)), self._image_shape)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return (self.data.channels, self.data.image_size, self.data.image_size)

    @cached_property
    def _train(self) -> ImageSet:
        return load_images(self.data, "train")

    def _pixels(self, i: int) -> Tensor:
        return torch.tensor(self._train.image(i, None))

    @cached_property
    def _plan(self) -> dict[str, Any]:
        """What the rows are of."""
        known = self.checked.get(self.directory.path)
        if known and self._are_of(known):
            return known
        width = compared(torch.zeros(1, *self._image_shape, dtype=torch.uint8)).shape[1]
        return {"data": self._train.fingerprint, "shape": [len(self._train), width]}


def _compared(pixels: Tensor) -> tuple[Tensor]:
    return (compared(pixels),)


def _read(path: Path) -> dict[str, Any]:
    """A document; empty where it is missing or damaged, and so of nothing that is wanted."""
    try:
        return read_document(path)
    except (FileNotFoundError, UserError):
        return {}
