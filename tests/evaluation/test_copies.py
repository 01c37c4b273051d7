import numpy as np
import pytest
import torch

from mvar.errors import UserError
from mvar.evaluation import copies
from mvar.evaluation.copies import Vectors, compared, copy_rate, nearest_distances


def draw(count, seed, shape=(1, 8, 8)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def brute_force(images, train):
    a, b = images.reshape(len(images), -1).astype(float), train.reshape(len(train), -1).astype(float)
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1)


def test_distances_equal_brute_force_in_blocks(monkeypatch):
    monkeypatch.setattr(copies, "BLOCK", 7)
    images, train = draw(20, 0, (3, 5, 4)), draw(30, 1, (3, 5, 4))
    calls = []
    found = nearest_distances(images, train, lambda done, total: calls.append((done, total)))
    np.testing.assert_allclose(found, brute_force(images, train), rtol=1e-14)
    assert calls[-1] == (30, 30)


def test_distances_are_exact_near_zero():
    train = draw(50, 0, (3, 32, 32))
    images = train[:3].copy()
    images[1, 0, 0, 0] ^= 1  # one grey level
    assert nearest_distances(images, train).tolist() == [0.0, 1.0, 0.0]


def test_large_images_are_compared_by_area_averages():
    train = draw(4, 0, (1, 64, 64))
    assert nearest_distances(train, train).tolist() == [0] * 4
    averages = train.reshape(4, 1, 32, 2, 32, 2).mean((3, 5)).round()
    np.testing.assert_allclose(nearest_distances(train[:2], train[2:]), brute_force(averages[:2], averages[2:]))


def test_new_images_score_the_quantile_and_copies_score_one():
    train, heldout, new = draw(300, 0), draw(400, 1), draw(2000, 2)
    honest = copy_rate(new, train, heldout)
    assert honest["eval/copy_rate_heldout"] == 0.05
    assert honest["eval/copy_rate"] == pytest.approx(0.05, abs=0.035)  # three standard errors of the quantile
    assert honest["eval/nn_distance_ratio"] == pytest.approx(1, abs=0.02)
    memorised = np.clip(train.astype(int) + np.random.default_rng(3).integers(-5, 6, train.shape), 0, 255)
    copied = copy_rate(memorised.astype(np.uint8), train, heldout)
    assert copied["eval/copy_rate"] == 1
    assert copied["eval/nn_distance_ratio"] < 0.1
    half = copy_rate(np.concatenate((train, new[:300])), train, heldout)
    assert 0.5 <= half["eval/copy_rate"] < 0.56


def test_the_threshold_is_a_distance_of_a_heldout_image():
    train, heldout = draw(40, 0), draw(60, 1)
    result = copy_rate(draw(10, 2), train, heldout)
    assert result["eval/copy_threshold"] == np.sort(brute_force(heldout, train))[2]
    assert result["eval/copy_rate_heldout"] == 3 / 60


def test_a_heldout_set_inside_the_training_set_is_an_error():
    train = draw(40, 0)
    with pytest.raises(UserError, match="held-out images: most are also training images"):
        copy_rate(draw(10, 2), train, train[:20])


class ImageSet:
    """The part of an image set that the comparison reads."""

    def __init__(self, images: np.ndarray, reading: int) -> None:
        self.images, self.reading = images, reading

    def __len__(self) -> int:
        return len(self.images)

    def image(self, i: int, rng: None) -> np.ndarray:
        return self.images[i]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_heldout_images_that_are_training_images_do_not_move_the_threshold(share, capsys):
    train, fresh = draw(200, 0), draw(100, 1)
    recited = train.copy()
    recited[:, 0, 0, 0] ^= 1
    both = round(share * 100 / (1 - share))
    heldout = np.concatenate((train[:both], fresh))
    plain, found = copy_rate(recited, train, fresh), copy_rate(recited, train, heldout)
    assert capsys.readouterr().err.count("\n") == 1
    assert found == plain | {"eval/heldout_in_training": both} and "eval/heldout_in_training" not in plain
    assert found["eval/copy_rate"] == 1 and found["eval/copy_rate_heldout"] == 0.05
    assert copy_rate(recited, train, ImageSet(heldout, 2)) == found
    told = capsys.readouterr().err
    assert f"held-out images: {both} of {both + 100} are also training images, which are not counted" in told


def test_the_first_reading_keeps_its_threshold_and_says_so(capsys):
    train, fresh = draw(200, 0), draw(90, 1)
    recited = train.copy()
    recited[:, 0, 0, 0] ^= 1
    found = copy_rate(recited, train, ImageSet(np.concatenate((train[:10], fresh)), 1))
    assert (found["eval/copy_rate"], found["eval/copy_threshold"]) == (0, 0)
    assert found["eval/copy_rate_heldout"] == 0.1 and found["eval/heldout_in_training"] == 10
    assert "10 of 100 are also training images, which are counted, as in the first reading" in capsys.readouterr().err
    sound = copy_rate(recited, train, ImageSet(fresh, 1))
    assert sound == copy_rate(recited, train, ImageSet(fresh, 2)) == copy_rate(recited, train, fresh)
    assert not capsys.readouterr().err


def test_sizes_must_agree():
    with pytest.raises(UserError, match=r"samples: .*allowed: \(1, 8, 8\) as in training images"):
        copy_rate(draw(10, 2, (1, 8, 9)), draw(10, 0), draw(10, 1))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 40)])
def test_vectors_stand_for_their_images(monkeypatch, shape):
    monkeypatch.setattr(copies, "BLOCK", 16)
    train, heldout, samples = draw(50, 0, shape), draw(40, 1, shape), draw(30, 2, shape)
    rows = compared(torch.from_numpy(train)).numpy()
    assert rows.dtype == np.uint8 and rows.shape == (50, shape[0] * min(shape[1], 32) ** 2)
    calls = []
    found = copy_rate(samples, Vectors(rows, shape), heldout, lambda done, total: calls.append((done, total)))
    assert found == copy_rate(samples, train, heldout)
    assert calls[-1] == (120, 120) and calls == sorted(calls)
    with pytest.raises(UserError, match="as in training images"):
        copy_rate(draw(5, 2, (1, 9, 9)), Vectors(rows, shape), heldout)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_distances_are_the_same_on_a_gpu():
    train, images = draw(5000, 0, (3, 32, 32)), draw(300, 1, (3, 32, 32))
    images[:3] = train[:3]
    assert np.array_equal(nearest_distances(images, train), nearest_distances(images, train, device="cuda"))
