"""`mvar check`'s library: a sound mixer has no fault, and every defect is found by its check and named in words."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

from mvar.checking.case import Case
from mvar.checking.mixer import CHECKS, CONFIG, _faults, check_mixer, texts_to_check
from mvar.config import Config
from mvar.errors import UserError
from mvar.mixers.base import Mixer
from mvar.registries import MIXERS


class MeansSettings(Config):
    power: int = Field(default=1, ge=1, le=3, description="Of the mean.")
    kind: str = Field(default="plain", description="Nothing.")


class Means(Mixer):
    """Adds to every token the mean of its own scale and all coarser ones. State: their sum."""

    key = "means"
    cuts = ("state",)
    Settings = MeansSettings
    examples = ("2", "2,kind=other")

    def __init__(self, config, settings, runtime):
        super().__init__(config, settings, runtime)
        self.linear = nn.Linear(config.width, config.width)

    def forward(self, x, span, state=None):
        total = x.new_zeros(len(x), 1, x.shape[2]) if state is None else state
        outputs = []
        for scale in span.scales:
            own = x[:, span.local(scale)]
            total = total + own.sum(1, keepdim=True)
            outputs.append(own + (total / span.visible(scale)) ** self.settings.power)
        return self.linear(torch.cat(outputs, 1)), self.kept(total, span)

    def kept(self, total, span):
        return None if span.is_last else total

    def init_weights(self, std):
        nn.init.trunc_normal_(self.linear.weight, std=std)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def visible(cls, settings, schedule):
        levels = np.array(schedule.levels)
        return levels[:, None] >= levels

    @classmethod
    def num_params(cls, config, settings):
        return config.width * (config.width + 1)

    @classmethod
    def flops(cls, config, settings, span):
        return 2 * span.length * config.width**2

    @classmethod
    def score_cells(cls, config, settings, span):
        return 0

    @classmethod
    def state_bytes(cls, config, settings, schedule, element_bytes):
        return config.width * element_bytes


@contextmanager
def registered(cls, name="means"):
    MIXERS.register(name, cls)
    try:
        yield
    finally:
        del MIXERS.own[name]


def faults(cls, text="means"):
    with registered(cls):
        return {finding.check: finding.faults for finding in check_mixer(text) if finding.faults}


def test_a_sound_mixer_has_no_fault():
    with registered(Means):
        texts = texts_to_check("means")
        assert texts == ["means", "means:2", "means:2,kind=other"]
        findings = [finding for text in texts for finding in check_mixer(text)]
    assert [finding.check for finding in findings] == 3 * list(CHECKS)
    assert [str(finding) for finding in findings if finding.faults] == []


# Defects: the class, the check that must find it, what it must say. ---------------------------------------------------


class LeaksFromFinerScales(Means):
    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return y + x.mean(1, keepdim=True), state


class LeaksOneTokenByAChoice(Means):
    """Through no gradient: the last token decides whether the first is turned round."""

    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return torch.cat((y[:, :1] * x[:, -1:, :1].sign(), y[:, 1:]), 1), state


class IgnoresItsState(Means):
    def forward(self, x, span, state=None):
        return super().forward(x, span, None)


class SaysTooLittleIsVisible(Means):
    @classmethod
    def visible(cls, settings, schedule):
        levels = np.array(schedule.levels)
        return levels[:, None] == levels


class SaysTooMuchIsVisible(Means):
    @classmethod
    def visible(cls, settings, schedule):
        return np.ones((schedule.num_tokens, schedule.num_tokens), dtype=bool)


class SeesLessThanItSays(Means):
    def forward(self, x, span, state=None):
        return self.linear(x), None if span.is_last else x.new_zeros(len(x), 1, x.shape[2])


class GivesNumbersForVisible(Means):
    @classmethod
    def visible(cls, settings, schedule):
        return np.ones(schedule.num_tokens)


class CountsNoBias(Means):
    @classmethod
    def num_params(cls, config, settings):
        return config.width**2


class CountsHalfTheFlops(Means):
    @classmethod
    def flops(cls, config, settings, span):
        return span.length * config.width**2


class CountsCellsThatItHasNot(Means):
    @classmethod
    def score_cells(cls, config, settings, span):
        return 1


class TakesSoftmaxesThatItDoesNotCount(Means):
    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return y * (x @ x.mT).softmax(-1).sum(-1, keepdim=True), state


class CountsTooLittleState(Means):
    @classmethod
    def state_bytes(cls, config, settings, schedule, element_bytes):
        return config.width


class KeepsAView(Means):
    def kept(self, total, span):
        return None if span.is_last else total.repeat(1, 5, 1)[:, :1]


class KeepsItsStateToTheEnd(Means):
    def kept(self, total, span):
        return total


class DropsInTraining(Means):
    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return nn.functional.dropout(y, 0.1, self.training), state


class BeginsWithNaN(Means):
    def init_weights(self, std):
        super().init_weights(std)
        nn.init.constant_(self.linear.bias, float("nan"))


class SetsHalfItsWeights(Means):
    def init_weights(self, std):
        nn.init.zeros_(self.linear.bias)


class HasAnIdleParameter(Means):
    def __init__(self, config, settings, runtime):
        super().__init__(config, settings, runtime)
        self.idle = nn.Parameter(torch.zeros(3))

    @classmethod
    def num_params(cls, config, settings):
        return super().num_params(config, settings) + 3


class CutsTheGradientOfItsState(Means):
    def kept(self, total, span):
        return None if span.is_last else total.detach()


class LooksAtTheBatch(Means):
    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return y - y.mean(0, keepdim=True), state


class OverflowsInHalf(Means):
    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return (y * torch.finfo(y.dtype).max if y.dtype == torch.bfloat16 else y), state


class AlwaysGivesSingle(Means):
    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return (y.float() if y.dtype == torch.bfloat16 else y), state


class ForgetsTheState(Means):
    def forward(self, x, span, state=None):
        return super().forward(x, span, state)[0]


class GivesFewerTokens(Means):
    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return y[:, 1:], state


class Raises(Means):
    def forward(self, x, span, state=None):
        return x @ x, None


class DoesNotKeepItsSettings(Means):
    def __init__(self, config, settings, runtime):
        super().__init__(config, MeansSettings(power=2), runtime)


class HasNoCounts(Means):
    @classmethod
    def flops(cls, config, settings, span):
        raise NotImplementedError("later")


class TakesTheNameOfTheFeedForward(Means):
    key = "ffn"


class HasNoKey(Means):
    key = "a.b"


class KeepsABufferThatIsNotSaved(Means):
    def __init__(self, config, settings, runtime):
        super().__init__(config, settings, runtime)
        self.register_buffer("two", torch.full((1,), 2.0), persistent=False)

    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state)
        return y * self.two, state


class CutsWhatThereIsNot(Means):
    cuts = ("gates",)


class SaysThatItHasKeys(Means):
    cuts = ("keys",)


class HidesItsState(Means):
    """From whoever looks for tensors in it."""

    def forward(self, x, span, state=None):
        y, state = super().forward(x, span, state and state())
        return y, None if state is None else lambda: state


class RemembersWhatWasEmptied(Means):
    """Beside its state."""

    def forward(self, x, span, state=None):
        if state is not None and not state.any():
            state = self.last
        y, state = super().forward(x, span, state)
        self.last = state
        return y, state


class IsNoMixer(nn.Module):
    Settings = None


SIDES, SPAN = "sides 1 2 3 4", r"span \[0,4\)"


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (LeaksFromFinerScales, "visible", rf"{SIDES}, {SPAN}: token 0 of scale 0 sees token 1 of scale 1, of a finer"),
        (LeaksOneTokenByAChoice, "visible", rf"{SPAN}: token 0 of scale 0 sees token 29 of scale 3, of a finer scale$"),
        (IgnoresItsState, "teacher forcing", r"spans \[0,3\) \[3,4\): token \d+ of scale 3 differs .* by .*e.*fp64"),
        (SaysTooLittleIsVisible, "visible", "token 1 of scale 1 sees token 0 of scale 0, which visible does not say"),
        (SaysTooMuchIsVisible, "visible", "visible lets token 0 of scale 0 see token 1 of scale 1, of a finer scale"),
        (SeesLessThanItSays, "visible", "visible says that token 1 of scale 1 sees token 0 of scale 0; it does not"),
        (GivesNumbersForVisible, "visible", r"gives float64 \(30,\); wanted: bool \(30, 30\)"),
        (CountsNoBias, "parameters", "says 4,096; the parameters are 4,160: linear.weight 4,096, linear.bias 64"),
        (CountsHalfTheFlops, "FLOPs", r"span \[1,2\): flops says 16,384; torch counts 32,768"),
        (CountsCellsThatItHasNot, "score cells", "says 1 for the whole image and 4 for its scales together"),
        (CountsCellsThatItHasNot, "score cells", "says 1; visible lets tokens see 627: more than is computed"),
        (
            TakesSoftmaxesThatItDoesNotCount,
            "score cells",
            r"span \[1,2\): score_cells says 0; a head's softmax is over 4",
        ),
        (CountsTooLittleState, "state bytes", "fp32, 1 image: state_bytes says 64 at most; the state keeps 256"),
        (KeepsAView, "state bytes", r"keeps 1,280 \(its tensors show 256: a view keeps the whole alive\)"),
        (KeepsItsStateToTheEnd, "teacher forcing", "a state is kept after the last scale; wanted: None"),
        (DropsInTraining, "training mode", r"train\(\) and eval\(\) give different outputs"),
        (BeginsWithNaN, "weights", "init_weights leaves linear.bias with values that are not finite"),
        (SetsHalfItsWeights, "weights", "gives linear.weight other values each time for the same seed"),
        (HasAnIdleParameter, "gradients", "^idle: no gradient reaches it"),
        (CutsTheGradientOfItsState, "gradients", "the tokens: its gradient through the state, step by step, is not"),
        (LooksAtTheBatch, "batch", r"image 0 of a batch differs from the same image alone, at token \d+ of scale"),
        (OverflowsInHalf, "half precision", "bf16 by autocast, .*: outputs that are not finite"),
        (AlwaysGivesSingle, "half precision", "bf16 weights: gives torch.float32 for torch.bfloat16"),
        (ForgetsTheState, "teacher forcing", r"forward returns Tensor; wanted: \(tokens, state\)"),
        (GivesFewerTokens, "teacher forcing", r"gives \(2, 29, 64\) for tokens \(2, 30, 64\); wanted: the same shape"),
        (Raises, "teacher forcing", r"raises RuntimeError: .* \(test_checking.py, line \d+\)"),
        (DoesNotKeepItsSettings, "builds", "the constructor does not keep its settings"),
        (HasNoCounts, "FLOPs", r"raises NotImplementedError: later \(test_checking.py, line \d+\)"),
        (TakesTheNameOfTheFeedForward, "key", "key is 'ffn', which a layer has already for something else"),
        (HasNoKey, "key", "key is 'a.b'; wanted: the name of the sub-layer"),
        (KeepsABufferThatIsNotSaved, "whole model", "loaded from its weights gives other logits: something the const"),
        (CutsWhatThereIsNot, "cuts", "cuts: 'gates' is unknown.*; allowed: keys, state"),
        (SaysThatItHasKeys, "cuts", rf"{SIDES}, keys cut at random: token \d+ of scale \d sees token .*, which is cut"),
        (HidesItsState, "cuts", r"the state before scale 1 emptied: token 1 of scale 1 still sees token 0 of scale 0"),
        (RemembersWhatWasEmptied, "cuts", r"the state before scale 1 emptied: token 1 of scale 1 still sees token 0"),
        (IsNoMixer, "builds", "IsNoMixer is no subclass of mvar.mixers.base.Mixer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_defect_is_found_and_named(cls, check, words):
    found = faults(cls)
    assert check in found, found
    assert any(re.search(words, fault) for fault in found[check]), found[check]
    assert all("\n" not in fault for told in found.values() for fault in told)


@pytest.mark.parametrize(
    ("cls", "others"),
    [
        (CountsNoBias, {"beside others"}),  # the model's count is made of it
        (CountsHalfTheFlops, set()),
        (CountsTooLittleState, set()),
        (HasAnIdleParameter, set()),
        (TakesTheNameOfTheFeedForward, set()),
        (DropsInTraining, set()),
    ],
)
def test_what_is_sound_is_not_blamed(cls, others):
    """A defect is a fault of its own check, and of no other that it does not touch."""
    own = {"CountsNoBias": "parameters", "CountsHalfTheFlops": "FLOPs", "CountsTooLittleState": "state bytes"}
    own |= {
        "HasAnIdleParameter": "gradients",
        "TakesTheNameOfTheFeedForward": "key",
        "DropsInTraining": "training mode",
    }
    found = set(faults(cls))
    assert own[cls.__name__] in found and found <= {own[cls.__name__], *others}


class GivesTokensAlone(Means):
    def forward(self, x, span, state=None):
        return super().forward(x, span, state)[0]


def test_a_forward_that_gives_tokens_alone_is_told_so():
    with registered(GivesTokensAlone):
        (fault,) = _faults(CHECKS["visible"], Case("means", CONFIG))
    assert fault == "span [0,4): forward returns Tensor; wanted: (tokens, state)"


def test_settings_that_it_does_not_take_are_refused():
    with (
        registered(Means),
        pytest.raises(UserError, match=r"means.power: '9': Input should be less than or equal to 3"),
    ):
        list(check_mixer("means:9"))


def test_checks_leave_the_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with registered(Means):
        list(check_mixer("means"))
    assert torch.equal(torch.rand(3), expected)
