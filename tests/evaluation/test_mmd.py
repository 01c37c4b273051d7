"""KID's standard error: that of many draws of both sets, in simulation; and the same in blocks."""

import numpy as np
import pytest
import torch

from mvar.evaluation import mmd
from mvar.evaluation.mmd import mmd_standard_error


def kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid(x, y):
    """The unbiased estimate over all images of both sets."""
    n, m, xx, yy = len(x), len(y), kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def draws(n, m, shift, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        first, second = (torch.randn(k, 8, generator=generator, dtype=torch.float64) for k in (n, m))
        yield first + shift, second


@pytest.mark.parametrize(("n", "m"), [(200, 100), (60, 120)])
@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_it_is_the_deviation_over_other_images_of_both_sets(n, m, shift):
    sets = list(draws(n, m, shift, 500))
    told = np.mean([mmd_standard_error(*pair) for pair in sets[:60]])
    assert told == pytest.approx(np.std([kid(*pair) for pair in sets]), rel=0.12)


def test_it_holds_the_references_share():
    """Where there are far more samples than real images, nearly all of it is theirs."""
    x, y = next(draws(2000, 50, 1.0, 1))
    references = torch.randn(300, 50, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    within = [(k.sum() - k.trace()) / (50 * 49) for k in map(kernel, references, references)]
    across = kernel(x, references.reshape(-1, 8)).mean(0).reshape(300, 50).mean(1)
    assert mmd_standard_error(x, y) == pytest.approx((torch.stack(within) - 2 * across).std().item(), rel=0.25)


def test_equal_sets_are_no_surer_than_they_are():
    """The first term vanishes there: what is left is of pairs, and is not lost."""
    sets = list(draws(150, 100, 0.0, 500))
    told = np.mean([mmd_standard_error(*pair) for pair in sets[:60]])
    assert 1 <= told / np.std([kid(*pair) for pair in sets]) < 1.3


def test_blocks_change_nothing(monkeypatch):
    (pair,) = draws(50, 31, 0.3, 1)
    whole = mmd_standard_error(*pair)
    monkeypatch.setattr(mmd, "BLOCK", 7)
    assert mmd_standard_error(*pair) == pytest.approx(whole, rel=1e-12)


def test_features_that_are_all_the_same_leave_nothing_unsure():
    assert mmd_standard_error(torch.ones(9, 4), torch.ones(5, 4)) == pytest.approx(0, abs=1e-6)
