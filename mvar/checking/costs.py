"""What a mixer says that it costs, against what it does."""

from collections.abc import Iterator

import torch

from mvar.checking.behaviour import NAMES
from mvar.checking.case import SIDES, Case, call, of_sides, scales
from mvar.checking.counting import count_flops, count_softmax, shown_bytes, storages
from mvar.scales import ScaleSchedule, Span


def parameters(case: Case) -> Iterator[str]:
    """`num_params` is what the built mixer has."""
    cls, settings = case.chosen
    said, found = cls.num_params(case.config, settings), sum(p.numel() for p in case.mixer().parameters())
    if said != found:
        parts = ", ".join(f"{name} {p.numel():,}" for name, p in case.mixer().named_parameters())
        yield f"num_params says {said:,}; the parameters are {found:,}: {parts}"


def _pieces(schedule: ScaleSchedule) -> list[list[Span]]:
    """Step by step, the whole, and in two pieces."""
    halves = [[schedule.span(0, k), schedule.span(k)] for k in range(1, schedule.num_scales)]
    return [schedule.steps(), [schedule.span()], *halves]


def flops(case: Case) -> Iterator[str]:
    """`flops` of every span is what torch counts, with gradients and without."""
    cls, settings = case.chosen
    mixer, told = case.mixer(torch.float32), set()
    for sides in SIDES:
        schedule = ScaleSchedule(sides)
        for grad in (False, True):
            for spans in _pieces(schedule):
                state = None
                for span in spans:
                    x = case.tokens(span, dtype=torch.float32)
                    with torch.set_grad_enabled(grad):
                        counted, (_, state) = count_flops(lambda x=x, span=span, s=state: call(mixer, x, span, s))
                    said = cls.flops(case.config, settings, span)
                    if said != counted and span not in told:
                        told.add(span)
                        yield f"{of_sides(schedule)}, {scales(span)}: flops says {said:,}; torch counts {counted:,}"


def score_cells(case: Case) -> Iterator[str]:
    """`score_cells` of every span is what a softmax is taken over, and never less than what is seen."""
    cls, settings = case.chosen
    mixer = case.mixer(torch.float32)
    for sides in SIDES:
        schedule = ScaleSchedule(sides)
        where, state = of_sides(schedule), None
        for span in [*schedule.steps(), schedule.span()]:  # the last step leaves no state to the whole
            x = case.tokens(span, dtype=torch.float32)
            with torch.no_grad():
                cells, (_, state) = count_softmax(lambda x=x, span=span, s=state: call(mixer, x, span, s))
            said = cls.score_cells(case.config, settings, span)
            found = cells / case.config.num_heads
            if said != found and (cells or not said):
                yield f"{where}, {scales(span)}: score_cells says {said:,}; a head's softmax is over {found:,g} pairs"
        whole = cls.score_cells(case.config, settings, schedule.span())
        total = sum(cls.score_cells(case.config, settings, span) for span in schedule.steps())
        pairs = int(cls.visible(settings, schedule).sum())
        if whole != total:
            yield f"{where}: score_cells says {whole:,} for the whole image and {total:,} for its scales together"
        if 0 < whole < pairs:
            yield f"{where}: score_cells says {whole:,}; visible lets tokens see {pairs:,}: more than is computed"


def state_bytes(case: Case) -> Iterator[str]:
    """`state_bytes` is the most that the state keeps alive between two scales, of one image."""
    cls, settings = case.chosen
    for sides in SIDES:
        schedule = ScaleSchedule(sides)
        for dtype in (torch.float32, torch.bfloat16):
            mixer, said = case.mixer(dtype), cls.state_bytes(case.config, settings, schedule, dtype.itemsize)
            for size in (1, 3):
                peak = shown = 0
                state = None
                for span in schedule.steps():
                    with torch.no_grad():
                        _, state = call(mixer, case.tokens(span, size, dtype), span, state)
                    peak, shown = max(peak, sum(storages(state).values())), max(shown, shown_bytes(state))
                if peak != (said if schedule.num_scales > 1 else 0) * size and schedule.num_scales > 1:
                    view = f" (its tensors show {shown:,}: a view keeps the whole alive)" if shown < peak else ""
                    yield (
                        f"{of_sides(schedule)}, {NAMES[dtype]}, {size} image{'s' * (size > 1)}: state_bytes says "
                        f"{said * size:,} at most; the state keeps {peak:,}{view}"
                    )
                    break
