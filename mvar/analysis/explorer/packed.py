"""A map as the explorer's page and widget read it: 8 bits a weight, every row of it in full.

For each query the weights on a key scale are counted in steps of 1/255 of the largest of them, so that a shown weight
is at most half such a step from the one that was computed. What stands beside them is not rounded (fp32): that largest
weight and the mass of every key scale, and the entropy. Shapes: `L` tokens, `V` tokens that a query sees.

Bytes, little-endian, compressed by zlib. Query by query, coarse to fine, each over the key scales that it sees:

    float32  largest weight of each key scale, then of the next query, ...
    float32  mass of each key scale, then of the next query, ...
    float32  entropy of each query, in nats
    uint8    weights in steps, V for each query
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from mvar.probes.single_maps import Blocks
from mvar.scales import ScaleSchedule

STEPS = 255
LEVEL = 6  # of compression: more costs ten times the time for one part in a hundred


@dataclass(frozen=True)
class Means:
    """Of a map, over all L queries: what the matrix of layers and heads is coloured by."""

    own: float  # mass on the own scale, or its share of the reach
    entropy: float  # nats

    def listed(self) -> list[float]:
        """Both, to seven digits: what a page takes must be known before it is made."""
        return [float(f"{value:.7g}") for value in (self.own, self.entropy)]


@dataclass(frozen=True)
class _Numbers:
    """Of the n queries of a scale: beside the weights `(n, V)`, for each key scale and each query."""

    parts: list[np.ndarray]  # the weights on each key scale
    mass: np.ndarray  # (n, key scales)
    entropy: np.ndarray  # (n,)

    @classmethod
    def of(cls, block: Tensor, schedule: ScaleSchedule, scale: int) -> "_Numbers":
        weights = block.numpy()
        parts = np.split(weights, schedule.offsets[1 : scale + 1], axis=1)
        mass = np.stack([part.sum(1, dtype=np.float64) for part in parts], 1)
        terms = weights * np.log(np.where(weights > 0, weights, 1))
        return cls(parts, mass, -terms.sum(1, dtype=np.float64))


def measure(blocks: Blocks, schedule: ScaleSchedule) -> Means:
    """The means of a map, a query scale at a time."""
    found = (_Numbers.of(block, schedule, scale) for scale, block in enumerate(blocks))
    return _means([replace(part, parts=[]) for part in found], schedule)


def _means(numbers: list[_Numbers], schedule: ScaleSchedule) -> Means:
    own = sum(float(part.mass[:, -1].sum()) for part in numbers)
    entropy = sum(float(part.entropy.sum()) for part in numbers)
    return Means(own / schedule.num_tokens, entropy / schedule.num_tokens)


def pack(blocks: Blocks, schedule: ScaleSchedule) -> tuple[bytes, Means]:
    """Pack a map, a query scale at a time; and its means."""
    tops, cells, numbers = [], [], []
    for scale, block in enumerate(blocks):
        found = _Numbers.of(block, schedule, scale)
        top = np.stack([part.max(1) for part in found.parts], 1)
        steps = [_steps(part, top[:, [number]]) for number, part in enumerate(found.parts)]
        tops.append(top)
        cells.append(np.concatenate(steps, 1).ravel())
        numbers.append(replace(found, parts=[]))
    beside = [*tops, *(part.mass for part in numbers), *(part.entropy for part in numbers)]
    floats = np.concatenate([values.ravel().astype("<f4") for values in beside])
    data = zlib.compress(floats.tobytes() + np.concatenate(cells).tobytes(), LEVEL)
    return data, _means(numbers, schedule)


def _steps(part: np.ndarray, top: np.ndarray) -> np.ndarray:
    return np.rint(part * (STEPS / np.where(top > 0, top, 1))).astype(np.uint8)


@dataclass(frozen=True)
class Row:
    """What one query looks at, unpacked."""

    weights: np.ndarray  # (V,)
    step: np.ndarray  # (V,), the weight that one step stands for
    mass: np.ndarray  # one number a key scale
    entropy: float


def unpack_row(data: bytes, schedule: ScaleSchedule, query: int) -> Row:
    """One row of a packed map: what the page shows, in Python."""
    raw = zlib.decompress(data)
    num_keys = [scale + 1 for scale in schedule.levels]  # key scales of each query
    total, count = sum(num_keys), schedule.num_tokens
    numbers = np.frombuffer(raw, "<f4", 2 * total + count)
    cells = np.frombuffer(raw, np.uint8, offset=numbers.nbytes)
    scale, first = schedule.levels[query], sum(num_keys[:query])
    span = schedule.span()
    start = sum(span.visible(level) for level in schedule.levels[:query])
    step = numbers[first : first + scale + 1] / STEPS
    per_key = np.repeat(step, schedule.lengths[: scale + 1])
    mass = numbers[total + first : total + first + scale + 1]
    row = cells[start : start + span.visible(scale)]
    return Row(row * per_key, per_key, mass, float(numbers[2 * total + query]))
