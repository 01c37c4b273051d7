"""Rejection sampling: which image is kept, and what a classifier without names for its outputs is taken to mean."""

import numpy as np
import pytest
import torch
from torch import nn

from mvar.errors import UserError
from mvar.evaluation.extractor import Extractor
from mvar.evaluation.rejection import class_outputs, label_score
from mvar.sampling import keep_best


class Mean(nn.Module):
    """Five outputs; the class of an image is its grey level // 60, and output `order[class]` says so."""

    order = (3, 0, 4, 1)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        level = images.double().mean((1, 2, 3))
        logits = torch.full((len(images), 5), -50.0, dtype=torch.float64)
        for number, output in enumerate(self.order):
            logits[:, output] = -((level - 60 * number - 30) ** 2) / 100
        return level[:, None], logits


def extractor(knows_labels):
    return Extractor(Mean(), lambda network, images: network(images), id="x", channels=1, knows_labels=knows_labels)


class Levels:
    """Images of one grey level each."""

    def __init__(self, labels):
        self.labels = np.array(labels)

    def image(self, i, rng):
        return np.full((1, 2, 2), 60 * self.labels[i] + 30, np.uint8)


def test_outputs_are_learnt_from_training_images():
    assert class_outputs(extractor(False), Levels([0, 1, 2, 3, 3, 0]), 4) == [3, 0, 4, 1]
    assert class_outputs(extractor(True), None, 4) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="class 2 has no training image"):
        class_outputs(extractor(False), Levels([0, 1, 3]), 4)


def test_score_is_the_log_probability_of_the_label():
    images = np.full((2, 4, 4, 1), 90, np.uint8)  # surely class 1
    scores = label_score(extractor(False), [3, 0, 4, 1], images, torch.tensor([1, 2]))
    assert scores[0] == pytest.approx(0, abs=1e-9) and scores[1] == pytest.approx(-36, abs=1e-6)


def test_the_best_candidate_is_kept_and_candidate_0_is_the_plain_image():
    def draw(seeds):
        return np.stack([np.random.default_rng(seed).random((2, 2)) for seed in seeds])

    def score(images):
        return images.mean((1, 2))

    seeds = [(7, i) for i in range(20)]
    plain = draw(seeds)
    assert np.array_equal(keep_best(draw, score, seeds, 1), plain)
    kept = [keep_best(draw, score, seeds, candidates) for candidates in (2, 5)]
    every = np.stack([draw([(*seed, j) for seed in seeds]) for j in range(5)])
    best = every.mean((2, 3)).argmax(0)
    assert np.array_equal(kept[1], every[best, np.arange(20)])
    assert (score(kept[0]) >= score(plain)).all() and (score(kept[1]) >= score(kept[0])).all()
    assert len(set(best)) > 1
    alone = keep_best(draw, score, seeds[3:4], 5)  # no image depends on the batch it was drawn in
    assert np.array_equal(alone[0], kept[1][3])


def test_equal_scores_keep_the_first():
    seeds = [(0, i) for i in range(4)]

    def draw(streams):
        return np.array([[stream[-1]] for stream in streams])

    assert keep_best(draw, lambda images: np.zeros(len(images)), seeds, 3).tolist() == [[0]] * 4
