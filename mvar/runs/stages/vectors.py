"""The training images of a folder as the search for near-copies compares them: decoded once for each data set.

Every evaluation compares its samples with all training images, and so do the floors. Of ImageNet they take 3.9 GB in
that form, and hours to be decoded anew. One stage a data set: `vectors.bin`, `meta.json`; before the latter is there,
`vectors.bin.partial` and `progress.json`, from which an interrupted build goes on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar.data.crops import ImageSet
from mvar.data.sources.registry import find
from mvar.data.tokens import prepared_batches
from mvar.errors import UserError
from mvar.evaluation.copies import Vectors, compared
from mvar.files import known_digest
from mvar.rows import Rows
from mvar.runs.documents import read_document, write_document
from mvar.runs.stages.shared import Context, images, recorded, write_origin
from mvar.runs.states import DONE

ROWS, META, PARTIAL, PROGRESS = "vectors.bin", "meta.json", "vectors.bin.partial", "progress.json"
BATCH_SIZE = 256


def training_vectors(context: Context, report: Callable[[int, int], None]) -> Vectors | None:
    """All training images of a folder, as `Vectors`; made where they are missing or of other files.

    Args:
        context: whose data.
        report: called with images decoded and in all; what it raises ends the work, which the next call goes on with.

    Returns:
        None for what is no folder (digits), and in memory anyway.

    Raises:
        UserError: an image that cannot be read; a damaged file.
    """
    config = context.config
    if not find(config.data.name).is_folder:
        return None
    directory = context.store.stage("vectors", config.data_id)
    train = images(config, "train")
    image_shape = (config.data.channels, config.data.image_size, config.data.image_size)
    shape = [len(train), compared(torch.zeros(1, *image_shape, dtype=torch.uint8)).shape[1]]
    plan = {"data": train.fingerprint, "shape": shape}
    with directory.lock(context.should_stop):
        meta = _read(directory.path / META)
        if {name: meta.get(name) for name in plan} != plan:
            with recorded(directory, "vectors"):
                write_origin(directory, data=config.data)
                _build(directory.path, plan, train, config.runtime.num_workers, report)
                directory.write_status(DONE, "vectors")
            meta = read_document(directory.path / META)
    path = directory.path / ROWS
    if not path.is_file() or path.stat().st_size != shape[0] * shape[1] or known_digest(path) != meta["sha256"]:
        raise UserError(f"{path}: missing or damaged (wrong checksum); remove its folder and it is made again")
    return Vectors(np.memmap(path, np.uint8, "r", shape=(shape[0], shape[1])), image_shape)


def _build(
    folder: Path, plan: dict[str, Any], train: ImageSet, num_workers: int, report: Callable[[int, int], None]
) -> None:
    total, width = plan["shape"]
    (folder / META).unlink(missing_ok=True)  # of other files: it must not vouch for these rows
    with Rows(folder / PARTIAL, folder / PROGRESS, plan, width, final=folder / ROWS) as rows:
        for pixels in prepared_batches(train, 0, 0, range(rows.done, total), BATCH_SIZE, num_workers):
            data = compared(torch.from_numpy(pixels)).numpy().tobytes()
            rows.append(data, is_last=rows.done + len(pixels) == total)
            report(rows.done, total)
        write_document(folder / META, {**plan, "sha256": rows.finish()})
        rows.forget()


def _read(path: Path) -> dict[str, Any]:
    """A document; empty where it is missing or damaged, and so of nothing that is wanted."""
    try:
        return read_document(path)
    except (FileNotFoundError, UserError):
        return {}
