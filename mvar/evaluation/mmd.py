"""How surely the maximum mean discrepancy of two sets of features is known: the standard error of KID.

KID's deviation over subsets says little where a subset is most of a set: of 450 held-out images every subset of 450 is
the same. Hoeffding's decomposition of the unbiased estimate gives its variance over new draws of both sets. Its first
term is four times the variance of each image's own part (Sutherland et al. 2017, "Generative models and model criticism
via optimized maximum mean discrepancy", equation 5, here for sets of two sizes); the second is that of pairs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 2048  # rows of a kernel matrix at a time


@dataclass(frozen=True)
class _Pairs:
    """Of a kernel matrix, the diagonal left out where both sets are one: means of rows and columns, and the part of
    the variance of its entries that is of pairs alone."""

    rows: Tensor
    columns: Tensor
    of_pairs: float


def mmd_standard_error(samples: Tensor, reference: Tensor, device: Any = "cpu") -> float:
    """Standard deviation of the unbiased squared MMD, cubic kernel as KID has it, over new draws of both sets.

    Args:
        samples, reference: features `(N, F)` and `(M, F)`, at least 3 of each.
        device: where the kernels are computed, in float64.

    Returns:
        NaN never; 0 where all features are the same.
    """
    x, y = (features.to(device=device, dtype=torch.float64) for features in (samples, reference))
    xx, yy, xy = _pairs(x, x), _pairs(y, y), _pairs(x, y)
    n, m = len(x), len(y)
    alone = 4 * float((xx.rows - xy.rows).var()) / n + 4 * float((yy.rows - xy.columns).var()) / m
    # the means of rows scatter by pairs too: that counts twice what pairs add to the estimate
    pairs = 2 * xx.of_pairs / (n * (n - 1)) + 2 * yy.of_pairs / (m * (m - 1)) + 4 * xy.of_pairs / (n * m)
    return max(alone - pairs, pairs, 0.0) ** 0.5


def _pairs(a: Tensor, b: Tensor) -> _Pairs:
    """Row by row in blocks: no matrix of all pairs is held."""
    same = a is b
    n, m = len(a), len(b)
    rows, columns = torch.empty(n, dtype=a.dtype, device=a.device), torch.zeros(m, dtype=a.dtype, device=a.device)
    squares = torch.zeros((), dtype=a.dtype, device=a.device)
    for start in range(0, n, BLOCK):
        kernel = (a[start : start + BLOCK] @ b.T / a.shape[1] + 1) ** 3
        if same:
            kernel.diagonal(start).zero_()
        rows[start : start + BLOCK] = kernel.sum(1)
        columns += kernel.sum(0)
        squares += kernel.square().sum()
    rows, columns = rows / (m - same), columns / (n - same)
    mean = rows.mean()
    entries = float(squares / (n * (m - same)) - mean**2)
    of_rows, of_columns = float(rows.var()), float(columns.var())
    rest = entries - of_rows - of_columns  # both hold a share of the pairs' own
    return _Pairs(rows, columns, max(0.0, rest / (1 - 1 / (m - same) - 1 / (n - same))))
