"""The order in which a scan goes through the tokens of a scale; scales always follow each other coarse to fine."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvar.kernels.constants import kept_on_device
from mvar.scales import ScaleSchedule, Span


def paths(order: str, side: int) -> list[NDArray[np.int64]]:
    """The scans of one map: for each the tokens, by their number in raster order, `(side * side,)`.

    Args:
        order: `raster` (row by row), `snake` (every other row backwards), `columns` (column by column) or `both` (two
            scans, row by row and the same backwards).
        side: of the map.
    """
    raster = np.arange(side * side).reshape(side, side)
    if order == "snake":
        return [np.where(np.arange(side)[:, None] % 2, raster[:, ::-1], raster).ravel()]
    if order == "columns":
        return [raster.T.ravel()]
    return [raster.ravel(), raster.ravel()[::-1]] if order == "both" else [raster.ravel()]


def tokens_in_order(order: str, span: Span) -> list[NDArray[np.int64]]:
    """The scans of a span: its tokens `(L,)` by their number in the span, scale after scale."""
    by_scale = [paths(order, span.schedule.sides[scale]) for scale in span.scales]
    starts = [span.local(scale).start for scale in span.scales]
    return [
        np.concatenate([start + path for start, path in zip(starts, one, strict=True)])
        for one in zip(*by_scale, strict=True)
    ]


def visible_in_order(order: str, schedule: ScaleSchedule) -> NDArray[np.bool_]:
    """`(L, L)`: what a token sees through any of the scans: itself and all before it."""
    found = np.zeros((schedule.num_tokens, schedule.num_tokens), np.bool_)
    for tokens in tokens_in_order(order, schedule.span()):
        place = np.argsort(tokens)
        found |= place[:, None] >= place
    return found


class ScanPath(NamedTuple):
    """One scan through the tokens of a span, there and back."""

    table: Tensor | None  # (2, L): tokens in the order of the scan, and places of the tokens in it; None: raster order

    def arrange(self, x: Tensor) -> Tensor:
        """Tokens `(B, L, D)` in the order of the scan; in raster order as they are."""
        return x if self.table is None else x[:, self.table[0]]

    def restore(self, x: Tensor) -> Tensor:
        """Tokens `(B, L, D)` from the order of the scan back to raster order."""
        return x if self.table is None else x[:, self.table[1]]


def scan_paths(order: str, span: Span, device: torch.device) -> list[ScanPath]:
    """The scans of a span."""
    if order == "raster":
        return [ScanPath(None)]
    tables = scan_tables(order, span.schedule, span.first, span.last, device)
    in_order = [ScanPath(table) for table in tables.unbind()]
    return [ScanPath(None), *in_order[1:]] if order == "both" else in_order


@kept_on_device
def scan_tables(order: str, schedule: ScaleSchedule, first: int, last: int, device: torch.device) -> Tensor:
    """For each scan the tokens in its order and the places of the tokens in it, `(scans, 2, L)`; made once."""
    scans = tokens_in_order(order, schedule.span(first, last))
    with torch.inference_mode(False):  # kept: the next call may want gradients
        return torch.from_numpy(np.stack([(tokens, np.argsort(tokens)) for tokens in scans])).to(device)
