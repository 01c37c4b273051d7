import numpy as np
import pytest
import torch

from mvar.errors import UserError
from mvar.evaluation.images import Images, check_same_size, spread_indices


class DecodedSet:
    def __init__(self, array):
        self.array = array

    def __len__(self):
        return len(self.array)

    def image(self, i, rng):
        assert rng is None  # centre crop
        return self.array[i]


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(0, 256, (7, 1, 4, 5), dtype=np.uint8)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, DecodedSet], ids=["array", "tensor", "image set"])
def test_every_source_reads_the_same(array, make):
    images = Images(make(array), "samples")
    assert len(images) == 7 and images.image_shape == (1, 4, 5)
    batches = list(images.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert np.array_equal(torch.cat(batches).numpy(), array)
    assert np.array_equal(torch.cat(list(images.subset(np.array([5, 1])).batches(9))), array[[5, 1]])


def test_a_read_only_source_is_not_written_to(array):
    array.flags.writeable = False
    Images(array, "samples")[0].zero_()
    assert array[0].any()


def test_content_order_forgets_the_order(array):
    def ordered(source):
        images = Images(source, "x")
        return torch.cat(list(images.subset(images.content_order()).batches(9)))

    order = np.random.default_rng(1).permutation(len(array))
    first, second = (ordered(a) for a in (array, array[order]))
    assert torch.equal(first, second)
    assert sorted(map(bytes, first.numpy())) == sorted(map(bytes, array))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((2, 1, 4, 4), np.nan), "samples: images with NaN pixels"),
        (np.zeros((2, 1, 4, 4)), "samples: pixels of type float64; allowed: uint8"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), "int64"),
        (np.zeros((2, 4, 4), np.uint8), r"samples: shape \(2, 4, 4\)"),
        (np.zeros((0, 1, 4, 4), np.uint8), "samples: 0 images"),
    ],
)
def test_bad_images_are_named(source, message):
    with pytest.raises(UserError, match=message):
        Images(source, "samples")


def test_sizes_must_agree(array):
    with pytest.raises(UserError, match=r"a: .*\(1, 4, 5\); allowed: \(1, 5, 4\) as in b"):
        check_same_size(Images(array, "a"), Images(array.swapaxes(2, 3), "b"))


def test_spread_indices_reach_every_part():
    assert spread_indices(5, 9).tolist() == [0, 1, 2, 3, 4]
    chosen = spread_indices(1000, 30)
    assert len(set(chosen)) == 30 and set(chosen // 100) == set(range(10))
