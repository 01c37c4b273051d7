"""Fresh crops: the tokens of a cache for the same crops, others in each epoch, decoded by processes."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_cache import build, make_images, make_tokenizer

from mvar.config import ModelConfig, TokenSpace, TrainConfig
from mvar.data.online import FreshCrops
from mvar.errors import UserError
from mvar.training.contract import DataOrder
from mvar.training.feed import Feed
from mvar.training.generator import OnlineObjective
from mvar.transformer import ScaleTransformer

CROPS, SEED = 3, 5
TRAIN = TrainConfig(steps=9, batch_size=4, label_dropout=0.5, tokens="online")


@pytest.fixture(scope="module")
def crops() -> FreshCrops:
    return FreshCrops(make_images(), make_tokenizer(), SEED)


@pytest.fixture(scope="module")
def cache(crops, tmp_path_factory):
    return build(tmp_path_factory.mktemp("cache"), crops.images, crops.tokenizer, crops=CROPS, seed=SEED)


@given(st.lists(st.tuples(st.integers(0, 89), st.integers(0, CROPS - 1)), min_size=1, max_size=40))
def test_the_same_crop_has_the_tokens_of_the_cache(crops, cache, chosen):
    """Whatever is encoded beside it."""
    numbers, epochs = zip(*chosen, strict=True)
    tokens = crops.encode(torch.from_numpy(crops.pixels(numbers, epochs)))
    expected = cache.tokens[np.array(numbers) * CROPS + np.array(epochs)].astype(np.int64)
    assert np.array_equal(tokens.numpy(), expected)


def objective_on(crops: FreshCrops) -> OnlineObjective:
    torch.manual_seed(0)
    model = ScaleTransformer(ModelConfig(depth=1, width=16, num_heads=2), TokenSpace((1, 2, 4), 300, 3, 10))
    return OnlineObjective(model, crops, TRAIN, seed=1)


def part(objective: OnlineObjective, step: int):
    return [(0, objective.batch(step, np.random.default_rng(step)))]


def fed(objective: OnlineObjective, steps, num_workers: int) -> list[tuple[torch.Tensor, ...]]:
    with Feed(objective, lambda step: part(objective, step), steps, num_workers, torch.device("cpu")) as feed:
        return [feed.next()[1] for _ in steps]


def test_each_epoch_has_every_image_once_in_another_crop(crops):
    few = FreshCrops(make_images(), crops.tokenizer, SEED)
    few.images.indices, few.images.labels = few.images.indices[:8], few.images.labels[:8]
    objective = objective_on(few)
    seen = {}
    for step in range(6):  # three epochs
        _, numbers, epochs = objective.batch(step, np.random.default_rng(0))
        _, pixels = objective.load(objective.batch(step, np.random.default_rng(0)))
        for row, key in enumerate(zip(numbers.tolist(), epochs.tolist(), strict=True)):
            seen[key] = pixels[row].numpy().tobytes()
    assert seen.keys() == {(image, epoch) for image in range(8) for epoch in range(3)}
    assert len(set(seen.values())) > 18  # of 9 crops an image: some come twice


def test_epochs_go_on_inside_a_batch():
    order = DataOrder(5, 4, seed=0)
    assert [order.epochs(step).tolist() for step in range(3)] == [[0] * 4, [0, 1, 1, 1], [1, 1, 2, 2]]


def test_processes_decode_and_change_nothing(crops, monkeypatch):
    objective, parent, forked = objective_on(crops), os.getpid(), []
    alone = fed(objective, range(9), 0)
    original = FreshCrops.pixels

    def pixels(self, numbers, epochs):
        forked.append(0)
        assert os.getpid() != parent
        return original(self, numbers, epochs)

    monkeypatch.setattr(FreshCrops, "pixels", pixels)
    state = torch.get_rng_state()
    together = fed(objective, range(9), 2)
    assert not forked  # in this process
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for one, two in zip(alone, together, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_an_image_that_a_process_cannot_read_is_one_line(crops, monkeypatch):
    monkeypatch.setattr(
        FreshCrops, "pixels", lambda *_: (_ for _ in ()).throw(UserError("data.root: x.png is no picture"))
    )
    with pytest.raises(UserError) as caught:
        fed(objective_on(crops), range(3), 2)
    assert str(caught.value) == "data.root: x.png is no picture"


def test_the_loss_is_that_of_the_tokens_in_float32(crops):
    objective = objective_on(crops)
    objective.module.eval()
    labels, numbers, epochs = objective.batch(0, np.random.default_rng(0))
    tokens = crops.encode(torch.from_numpy(crops.pixels(numbers.tolist(), epochs.tolist())))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, inputs = objective.tokens_and_inputs(*objective.load((labels, numbers, epochs))[1:])
    assert torch.equal(got, tokens) and inputs.dtype == torch.float32
    loss, _ = objective.loss(objective.load((labels, numbers, epochs)), 0)
    logits, _ = objective.module(labels, inputs)
    wanted = -logits.log_softmax(-1).gather(-1, tokens[..., None]).mean()
    torch.testing.assert_close(loss, wanted)
