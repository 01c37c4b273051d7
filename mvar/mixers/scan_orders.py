"""The order in which a scan goes through the tokens of a scale; scales always follow each other coarse to fine."""

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


class ScanPath:
    """One scan through the tokens of a span, there and back."""

    def __init__(self, tokens: NDArray[np.int64], device: torch.device) -> None:
        self.is_raster = bool((np.diff(tokens) == 1).all())
        if self.is_raster:
            return
        with torch.inference_mode(False):  # kept: the next call may want gradients
            self._there, self._back = (torch.from_numpy(i).to(device) for i in (tokens, np.argsort(tokens)))

    def arrange(self, x: Tensor) -> Tensor:
        """Tokens `(B, L, D)` in the order of the scan; in raster order as they are."""
        return x if self.is_raster else x[:, self._there]

    def restore(self, x: Tensor) -> Tensor:
        """Tokens `(B, L, D)` from the order of the scan back to raster order."""
        return x if self.is_raster else x[:, self._back]


@kept_on_device
def scan_paths(order: str, span: Span, device: torch.device) -> list[ScanPath]:
    """The scans of a span; made once."""
    return [ScanPath(tokens, device) for tokens in tokens_in_order(order, span)]
