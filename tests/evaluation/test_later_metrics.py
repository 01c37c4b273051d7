"""Density, coverage and FD-infinity, against slow loops and closed forms."""

import math

import numpy as np
import pytest
import torch

from mvar.config import EvaluationConfig
from mvar.errors import UserError
from mvar.evaluation import fidelity
from mvar.evaluation.fidelity import density_and_coverage, extrapolated_distance
from mvar.evaluation.metrics.inputs import Features, Inputs, Parts, compute
from mvar.registries import METRICS


def normal(seed, count, width=4, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width))) * scale


def measured(name, samples, reference):
    inputs = Inputs(EvaluationConfig(), Parts(reference=lambda: reference))
    inputs._features = Features(samples, samples, reference, reference)
    return compute(name, METRICS.find(name)(), inputs)


@pytest.mark.parametrize("block", [7, 4096])
def test_density_and_coverage_are_what_their_paper_says(monkeypatch, block):
    monkeypatch.setattr(fidelity, "BLOCK", block)
    samples, real = normal(0, 30, scale=0.3), normal(1, 40)
    radii = [sorted(math.dist(a, b) for b in real.tolist())[5] for a in real.tolist()]
    inside = [[math.dist(a, b) < r for b in samples.tolist()] for a, r in zip(real.tolist(), radii, strict=True)]
    found = measured("density_coverage", samples, real)
    assert found["eval/density"] == pytest.approx(sum(map(sum, inside)) / (5 * 30), rel=1e-12)
    assert found["eval/coverage"] == pytest.approx(sum(map(any, inside)) / 40, rel=1e-12)
    assert 0 < found["eval/coverage"] < 1


def test_real_images_have_density_1_and_one_image_again_and_again_covers_little():
    real = normal(0, 200)
    assert density_and_coverage(real, real, 5) == (1.0, 1.0)
    density, coverage = density_and_coverage(real[:1].expand(50, -1), real, 5)
    assert density > 0.1 and coverage < 0.1
    with pytest.raises(UserError, match="reference images: 5 are too few; allowed: more than 5"):
        density_and_coverage(real, real[:5], 5)


def test_fd_infinity_is_the_value_at_0_of_a_line_in_one_over_the_number_of_samples(monkeypatch):
    sizes = []

    def linear(part, reference):
        sizes.append(part)
        return 2.5 + 40 / part

    monkeypatch.setattr(fidelity, "statistics", len)
    monkeypatch.setattr(fidelity, "distance_of", linear)
    assert extrapolated_distance(torch.zeros(1000, 1), {}) == pytest.approx(2.5, rel=1e-9)
    assert len(sizes) == 15 and (min(sizes), max(sizes)) == (100, 1000)


def test_fd_infinity_takes_off_the_bias_of_few_samples():
    """Samples of the very distribution: FID of n is about proportional to 1/n, FD-infinity about 0."""
    width = 24
    exact = {"mu": np.zeros(width), "sigma": np.eye(width)}
    fids, infinite = [], []
    for seed in range(3):
        samples = normal(seed, 1000, width)
        fids.append(fidelity.distance_of(fidelity.statistics(samples), exact))
        infinite.append(extrapolated_distance(samples, exact))
    assert np.mean(fids) > 0.1
    assert abs(np.mean(infinite)) < 0.1 * np.mean(fids)


def test_fd_infinity_finds_a_real_distance_and_repeats():
    samples, real = normal(0, 2000) + 1, normal(1, 2000)
    found = measured("fd_infinity", samples, real)["eval/fd_infinity"]
    assert found == pytest.approx(4, abs=0.3)  # four means off by one each
    assert found == extrapolated_distance(samples, fidelity.statistics(real))
