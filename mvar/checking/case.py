"""One mixer with one choice of settings, built and run for the checks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from mvar.config import ModelConfig, RuntimeConfig
from mvar.mixers.base import Chosen, Mixer
from mvar.scales import ScaleSchedule, Span

SIDES = ((1, 2, 3, 4), (2, 3, 5), (1, 1, 6), (4,))
NOISE = 1.2  # over the root of the width: as large as what a weight does to a token


@dataclass(frozen=True)
class Case:
    """A mixer's text, and the sizes of the model that it is built for."""

    text: str
    config: ModelConfig

    @property
    def chosen(self) -> Chosen:
        """Class and settings."""
        return Chosen.of(self.config, self.text)

    def mixer(self, dtype: torch.dtype = torch.float64) -> Mixer:
        """The mixer with weights that are far from any special value: gates that begin closed hide mistakes."""
        torch.manual_seed(0)
        mixer = self.chosen.build(self.config, RuntimeConfig(device="cpu"))
        mixer.init_weights(self.config.width**-0.5)
        with torch.no_grad():
            for p in mixer.parameters():
                p.add_(torch.randn_like(p) * NOISE / self.config.width**0.5)
        return mixer.to(dtype).eval()

    def tokens(self, span: Span, batch: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
        """Random inputs `(B, L, D)` of a span."""
        torch.manual_seed(1)
        return torch.randn(batch, span.length, self.config.width).to(dtype)


def splits(schedule: ScaleSchedule) -> Iterator[list[Span]]:
    """Every way to run the scales in pieces, the single piece left out."""
    inner = range(1, schedule.num_scales)
    for count in inner:
        for cuts in combinations(inner, count):
            yield [schedule.span(first, last) for first, last in pairwise((0, *cuts, schedule.num_scales))]


def run(mixer: Mixer, x: Tensor, spans: Sequence[Span]) -> Tensor:
    """The outputs `(B, L, D)` of all tokens, in pieces, the state carried from piece to piece."""
    outputs, state = [], None
    for span in spans:
        y, state = call(mixer, x[:, span.start : span.stop], span, state)
        outputs.append(y)
    return torch.cat(outputs, 1)


class Broken(Exception):
    """A call that did not return what it must; the message says what."""


def call(mixer: Mixer, x: Tensor, span: Span, state: Any) -> tuple[Tensor, Any]:
    """A mixer's forward; looks at what it returns."""
    found = mixer(x, span, state)
    if not (isinstance(found, tuple) and len(found) == 2):
        raise Broken(f"{scales(span)}: forward returns {type(found).__name__}; wanted: (tokens, state)")
    y, state = found
    if not isinstance(y, Tensor) or y.shape != x.shape:
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise Broken(f"{scales(span)}: forward gives {shape} for tokens {tuple(x.shape)}; wanted: the same shape")
    if span.is_last and state is not None:
        raise Broken(f"{scales(span)}: a state is kept after the last scale; wanted: None where span.is_last")
    return y, state


def scales(*spans: Span) -> str:
    """Spans as messages name them: `spans [0,2) [2,4)`."""
    return f"span{'s' * (len(spans) > 1)} {' '.join(f'[{span.first},{span.last})' for span in spans)}"


def token(schedule: ScaleSchedule, number: int) -> str:
    """A token as messages name it."""
    return f"token {number} of scale {schedule.levels[number]}"


def of_sides(schedule: ScaleSchedule) -> str:
    """A schedule as messages name it."""
    return f"sides {' '.join(map(str, schedule.sides))}"
