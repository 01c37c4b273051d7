"""Running means of the weights: the weighted mean that they say they are, resumable to the bit, nothing where off."""

import pytest
import torch
from torch import nn
from toy_objective import RUNTIME, Toy, assert_identical, flatten, toy_optim, weights_of

from mvar.errors import UserError
from mvar.training.checkpoint import load_latest
from mvar.training.loop import fit
from mvar.training.running_means import RunningMeans

HALF_LIVES = (4, 30, 10**9)


def trained(directory, half_lives=HALF_LIVES, die_at=None):
    toy = Toy(die_at=die_at)
    means = RunningMeans(toy.module, half_lives, toy_optim().batch_size)
    fit(toy, toy_optim(), directory, RUNTIME, seed=3, means=means)
    return means


@pytest.mark.parametrize("half_life", HALF_LIVES)
def test_it_is_the_weighted_mean_of_every_step(half_life):
    """By the sum written out: a step counts half as much as one that is a half-life of images later."""
    torch.manual_seed(0)
    module, batch_size = nn.Linear(3, 2).double(), 8
    means, steps = RunningMeans(module, HALF_LIVES, batch_size), []
    for done in range(1, 21):
        with torch.no_grad():
            module.weight.copy_(torch.randn(2, 3))
        means.update(done)
        steps.append(module.weight.detach().clone())
    shares = torch.tensor([0.5 ** (batch_size * age / half_life) for age in reversed(range(20))], dtype=torch.float64)
    expected = (shares[:, None, None] * torch.stack(steps)).sum(0) / shares.sum()
    torch.testing.assert_close(means.weights(half_life)["weight"], expected, rtol=1e-7, atol=1e-9)
    assert torch.equal(module.weight, steps[-1])


def test_a_long_half_life_is_the_plain_mean_and_a_short_one_the_last_step():
    module = nn.Linear(1, 1, bias=False).double()
    means = RunningMeans(module, (1, 10**12), 64)
    for done in range(1, 11):
        with torch.no_grad():
            module.weight.fill_(done)
        means.update(done)
    assert means.weights(10**12)["weight"].item() == pytest.approx(5.5)
    assert means.weights(1)["weight"].item() == pytest.approx(10)


@pytest.mark.parametrize("die_at", [1, 5, 10])
def test_resuming_gives_the_same_bits(die_at, tmp_path):
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", die_at=die_at)
    resumed = trained(tmp_path / "killed")
    assert_identical(tmp_path / "whole", tmp_path / "killed")
    a, b = flatten(whole.state_dict()), flatten(resumed.state_dict())
    assert a.keys() == b.keys() and len(a) == 3 * 4 and all(torch.equal(a[name], b[name]) for name in a)


def test_they_change_no_weights_and_off_they_leave_no_trace(tmp_path):
    trained(tmp_path / "with")
    trained(tmp_path / "without", half_lives=())
    assert (weights_of(tmp_path / "with") == weights_of(tmp_path / "without")).all()
    states = [load_latest(tmp_path / name / "checkpoints")[1] for name in ("with", "without")]
    assert states[0].keys() - states[1].keys() == {"means"}


def test_a_checkpoint_without_them_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, half_lives=(), die_at=7)
    with pytest.raises(UserError, match="is a checkpoint of another model, or damaged"):
        trained(tmp_path)
