"""The contract of a mixer, check by check: what `mvar check` runs on a user's class, and our tests on every one."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from mvar.checking import behaviour, costs, cuts, in_model
from mvar.checking.case import Broken, Case
from mvar.config import ModelConfig
from mvar.errors import UserError, quoted
from mvar.mixers.base import mixer_class
from mvar.pattern import parse_mixer

CONFIG = ModelConfig(depth=2, width=64, num_heads=4)
OURS = Path(__file__).parents[1]
MOST = 3  # faults of one check that are told
FIRST = {"builds": behaviour.builds}  # without it nothing else can be looked at
CHECKS: dict[str, Callable[[Case], Iterator[str]]] = {
    **FIRST,
    "weights": behaviour.weights,
    "teacher forcing": behaviour.teacher_forcing,
    "visible": behaviour.visible,
    "batch": behaviour.batch,
    "training mode": behaviour.training_mode,
    "gradients": behaviour.gradients,
    "half precision": behaviour.half_precision,
    "parameters": costs.parameters,
    "FLOPs": costs.flops,
    "score cells": costs.score_cells,
    "state bytes": costs.state_bytes,
    "cuts": cuts.cuts,
    "key": in_model.key,
    "beside others": in_model.beside_others,
    "whole model": in_model.whole_model,
}


@dataclass(frozen=True)
class Finding:
    """What one check found: nothing, or in words what is wrong."""

    mixer: str  # as a pattern names it
    check: str
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.mixer}: {self.check}: {'; '.join(self.faults) or 'ok'}"


def texts_to_check(name: str, settings: Iterable[str] = (), config: ModelConfig = CONFIG) -> list[str]:
    """A mixer's texts: with its defaults, and with each of the settings; with those of its class where none is given.

    Raises:
        UserError: an unknown mixer; settings, or `examples` of its class, that are none of them or that it does not
            take.
    """
    given = list(settings)
    chosen = given or getattr(mixer_class(name), "examples", ())
    if isinstance(chosen, str) or not isinstance(chosen, Iterable) or not all(isinstance(one, str) for one in chosen):
        raise UserError(f"mixer {name!r}: examples: {quoted(chosen, 60)}; allowed: a tuple of texts, e.g. ('2',)")
    texts = [name, *(f"{name}:{text}" for text in chosen)]
    for text in texts:
        try:
            parse_mixer(text)
            config.settings_of(text)
        except UserError as error:
            if given or text == name:
                raise
            told = str(error).removeprefix("model.pattern: ")
            raise UserError(f"mixer {name!r}: examples: {told}") from None
    return list(dict.fromkeys(texts))


def check_mixer(text: str, config: ModelConfig = CONFIG) -> Iterator[Finding]:
    """Run every check on a registered mixer, one finding each, as they are made.

    Args:
        text: its text in a pattern, `markov:2`.
        config: sizes of the model that it is checked in; it holds a section of its settings where it has one.

    Raises:
        UserError: an unknown mixer, or settings that it does not take.
    """
    config.settings_of(text)
    case = Case(text, config)
    for name, check in CHECKS.items():
        with torch.random.fork_rng(devices=[]):
            faults = _faults(check, case)
        yield Finding(text, name, faults)
        if faults and name in FIRST:
            return


def _faults(check: Callable[[Case], Iterator[str]], case: Case) -> tuple[str, ...]:
    faults: list[str] = []
    try:
        faults += islice(check(case), MOST)
    except Broken as error:
        faults.append(str(error))
    except UserError as error:
        faults.append(f"refused: {error}")
    except Exception as error:  # a mixer that is being written may raise anything
        faults.append(_raised(error))
    return tuple(dict.fromkeys(faults))


def _raised(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    own = [frame for frame in own if OURS not in Path(frame.filename).parents] or own
    line = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    said = (str(error).splitlines() or [""])[0]
    return f"raises {type(error).__name__}: {said}{line}"
