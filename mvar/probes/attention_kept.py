"""Attention statistics that are kept in a folder: measured once, and resumable to the bit.

The folder holds `attention.json` (statistics, and what they were measured on) and `attention_images.npy`: float32
`(images, N, H, S, S + 1)`, for every image, layer, head and query scale the mass on every key scale and the entropy.
"""

from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mvar import layout
from mvar.artefacts import note
from mvar.errors import UserError
from mvar.files import read_json, write_json
from mvar.probes.attention_mass import AttentionStats, attention_rows, global_layers, summarise
from mvar.probes.measurable import Measurable
from mvar.progress import Progress
from mvar.rows import Rows
from mvar.training.numerics import precise

SUMMARY_ROWS = 64  # images that are read at a time when statistics are made of them


def measure(what: Measurable, folder: Path, progress: Progress | None = None) -> AttentionStats:
    """Attention statistics of a model, kept in a folder; what is there already is not computed again.

    A killed call goes on after the last batch that it wrote; the files are in the end, byte for
    byte, those of a call that was not killed.

    Raises:
        UserError: a model without global attention, or something that is missing.
    """
    if (found := kept(what, folder)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / layout.ATTENTION_LOCK), precise(what.runtime):
        found = kept(what, folder)  # another process may have been at it
        if found is None:
            found = _measure(what, folder, progress)
            write_json(folder / layout.ATTENTION_JSON, {**found.to_json(), "measured": what.identity})
        return found


def kept(what: Measurable, folder: Path) -> AttentionStats | None:
    """What was measured already, of exactly this; else None."""
    with suppress(FileNotFoundError, UserError, KeyError, TypeError):  # a cache: measuring again mends it
        values = read_json(folder / layout.ATTENTION_JSON)
        if values["measured"] == what.identity:
            return AttentionStats.from_json(values)
    return None


def _measure(what: Measurable, folder: Path, progress: Progress | None) -> AttentionStats:
    opened, size = what.open(), what.identity["batch_size"]
    model, count = opened.model, opened.num_images
    if not count:
        raise UserError("attention: no images to measure on; allowed: at least one")
    layers, schedule = global_layers(model), model.schedule
    shape = (count, len(layers), model.config.num_heads, schedule.num_scales, schedule.num_scales + 1)
    with _rows(folder, what.identity, shape) as rows:
        starts = range(rows.done, count, size)
        batches = (opened.batch(range(start, min(start + size, count))) for start in starts)
        for values in attention_rows(model, batches):
            rows.append(values.to(torch.float32).numpy().tobytes())
            if progress:
                progress(rows.done, count)
        note(folder / layout.ATTENTION_ROWS, rows.sha256)
        rows.finish()
        rows.forget()
    return summarise(_read(folder / layout.ATTENTION_ROWS), tuple(number for number, _ in layers), schedule.sides)


def _rows(folder: Path, identity: dict[str, Any], shape: tuple[int, ...]) -> Rows:
    """The rows of a measurement while it grows: a .npy file that is not full yet."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return Rows(
        folder / layout.ATTENTION_PARTIAL,
        folder / layout.ATTENTION_PROGRESS,
        {"identity": identity, "shape": list(shape)},
        4 * int(np.prod(shape[1:])),
        final=folder / layout.ATTENTION_ROWS,
        header=header.getvalue(),
        every_s=0.0,
    )


def _read(path: Path) -> Iterator[Tensor]:
    rows = np.load(path, mmap_mode="r")
    for start in range(0, len(rows), SUMMARY_ROWS):
        yield torch.from_numpy(rows[start : start + SUMMARY_ROWS].astype(np.float64))
