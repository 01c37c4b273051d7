"""What a mixer says can be cut in it, cut: it sees what is left and nothing else, in teacher forcing and sampling."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from mvar.checking.behaviour import TOLERANCE, sees, worst
from mvar.checking.case import SIDES, Case, of_sides, run, scales, splits, token
from mvar.errors import one_of
from mvar.kernels.attention import Severed
from mvar.mixers.base import Mixer
from mvar.mixers.cutting import PARTS, editing_output, editing_state, emptied, severing
from mvar.mixers.scale_attention import ScaleAttention
from mvar.scales import ScaleSchedule, Span

KEPT = 0.5  # of the keys, at random


def cuts(case: Case) -> Iterator[str]:
    """What `cuts` names can be cut, and so can the output; where nothing is cut the bytes are the same."""
    cls, _ = case.chosen
    for part in cls.cuts:
        if part not in PARTS:
            yield str(one_of("cuts", part, PARTS))
            return
    for sides in SIDES:
        schedule = ScaleSchedule(sides)
        mixer = case.mixer()
        x = case.tokens(schedule.span(), 2)
        with torch.no_grad():
            whole = run(mixer, x, [schedule.span()])
            with editing_output(mixer, lambda y, span: torch.zeros_like(y)):
                if run(mixer, x, schedule.steps()).any():
                    yield f"{of_sides(schedule)}: its output, replaced by zeros, is not zeros"
            if "keys" in cls.cuts:
                yield from _keys(case, mixer, x, whole, schedule)
            if "state" in cls.cuts:
                yield from _state(case, mixer, x, whole, schedule)
            if not torch.equal(run(mixer, x, [schedule.span()]), whole):
                yield f"{of_sides(schedule)}: after a cut the mixer is not as before"


def _keys(case: Case, mixer: Mixer, x: Tensor, whole: Tensor, schedule: ScaleSchedule) -> Iterator[str]:
    cls, settings = case.chosen
    seen = torch.from_numpy(cls.visible(settings, schedule))
    with severing(mixer, Severed(torch.zeros_like(seen)[None])):
        if not torch.equal(run(mixer, x, [schedule.span()]), whole):
            yield f"{of_sides(schedule)}: with no pair cut its output has other bytes than without a cut"
    torch.manual_seed(3)
    kept = seen & (torch.rand(seen.shape) < KEPT)
    with severing(mixer, Severed(~kept[None])):
        yield from _steps(mixer, x, splits(schedule), "with keys cut")
        with torch.enable_grad():
            found = torch.from_numpy(sees(mixer, schedule))
    own = torch.eye(len(seen), dtype=torch.bool)  # the query itself
    for wrong, told in ((found & ~kept & ~own, "sees {1}, which is cut"), (kept & ~found, "no longer sees {1}")):
        if wrong.any():
            row, column = (token(schedule, int(i)) for i in wrong.nonzero()[0])
            yield f"{of_sides(schedule)}, keys cut at random: {row} {told.format(row, column)}"
    if isinstance(mixer, ScaleAttention):
        yield from _one_key(mixer, x, seen, schedule)


def _one_key(mixer: ScaleAttention, x: Tensor, seen: Tensor, schedule: ScaleSchedule) -> Iterator[str]:
    """All keys but one cut: what that key alone gives; no key left: what zeros give."""
    torch.manual_seed(4)
    chosen = (torch.rand(seen.shape) * seen).argmax(-1)
    pairs = torch.ones_like(seen).scatter_(1, chosen[:, None], False)
    _, _, v = mixer.project(x)
    for name, cut, values in (
        ("all keys but one cut", pairs, v[:, :, chosen]),
        ("all keys cut", torch.ones_like(seen), torch.zeros_like(v)),
    ):
        expected = mixer.merge(values)
        with severing(mixer, Severed(cut[None])):
            error, number = worst(run(mixer, x, [schedule.span()]), expected)
        if not error <= TOLERANCE[x.dtype]:
            yield f"{of_sides(schedule)}, {name}: {token(schedule, number)} is not what is left, by {error:.1e}"


def _state(case: Case, mixer: Mixer, x: Tensor, whole: Tensor, schedule: ScaleSchedule) -> Iterator[str]:
    cls, settings = case.chosen
    seen = torch.from_numpy(cls.visible(settings, schedule))
    levels = torch.tensor(schedule.levels)
    with editing_state(mixer, range(1, schedule.num_scales), lambda state, scale: state):
        error, number = worst(run(mixer, x, [schedule.span()]), whole)
        if not error <= TOLERANCE[x.dtype]:
            yield f"{of_sides(schedule)}: with its state left alone {token(schedule, number)} differs by {error:.1e}"
    for scale in range(1, schedule.num_scales):
        kept = seen & ~((levels[:, None] >= scale) & (levels < scale))
        with editing_state(mixer, [scale], emptied):
            yield from _steps(mixer, x, [schedule.steps()], f"with the state before scale {scale} emptied")
            with torch.enable_grad():
                found = torch.from_numpy(sees(mixer, schedule))
        for wrong, told in ((found & ~kept, "still sees"), (kept & ~found, "no longer sees")):
            if wrong.any():
                row, column = (token(schedule, int(i)) for i in wrong.nonzero()[0])
                yield f"{of_sides(schedule)}, the state before scale {scale} emptied: {row} {told} {column}"


def _steps(mixer: Mixer, x: Tensor, several: Iterable[list[Span]], told: str) -> Iterator[str]:
    """A cut is the same cut in every split of the scales."""
    whole = None
    for spans in several:
        schedule = spans[0].schedule
        whole = run(mixer, x, [schedule.span()]) if whole is None else whole
        error, number = worst(run(mixer, x, spans), whole)
        if not error <= TOLERANCE[x.dtype]:
            where = f"{of_sides(schedule)}, {scales(*spans)}, {told}"
            yield f"{where}: {token(schedule, number)} differs from the whole image at once, by {error:.1e}"
