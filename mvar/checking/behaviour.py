"""What a mixer does with tokens: one result for every split, what a token sees, independence, weights, gradients."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvar.checking.case import SIDES, Case, call, of_sides, run, scales, splits, token
from mvar.config import RuntimeConfig
from mvar.mixers.base import Mixer
from mvar.scales import ScaleSchedule

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative to the largest output
NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}
# Times the size of ordinary tokens, which come from a norm: products of several must not overflow in fp32.
LOUD = 1e3


def builds(case: Case) -> Iterator[str]:
    """A mixer of the contract's class, which keeps its settings."""
    cls, settings = case.chosen
    if not issubclass(cls, Mixer):
        yield f"{cls.__name__} is no subclass of mvar.mixers.base.Mixer"
        return
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        yield f"{cls.__name__} lacks {', '.join(missing)}"
        return
    mixer = case.mixer()
    if getattr(mixer, "settings", settings) != settings or not hasattr(mixer, "settings"):
        yield "the constructor does not keep its settings; wanted: super().__init__(config, settings, runtime)"
    if not list(mixer.parameters()):
        yield "it has no parameters; wanted: at least one, registered by torch.nn"


def weights(case: Case) -> Iterator[str]:
    """`init_weights` gives the same finite weights for the same random numbers, whatever was there."""
    found = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        mixer = case.chosen.build(case.config, RuntimeConfig(device="cpu"))
        torch.manual_seed(5)
        mixer.init_weights((3 * case.config.width) ** -0.5)
        found.append(mixer)
    one, other = (dict(mixer.named_parameters()) for mixer in found)
    for name, p in one.items():
        if not bool(p.isfinite().all()):
            yield f"init_weights leaves {name} with values that are not finite"
        elif not torch.equal(p, other[name]):
            yield f"init_weights gives {name} other values each time for the same seed: does it set it at all?"


def teacher_forcing(case: Case) -> Iterator[str]:
    """The whole image at once gives what every split of its scales gives, the state carried on."""
    for dtype, tolerance in TOLERANCE.items():
        mixer = case.mixer(dtype)
        for sides in SIDES:
            schedule = ScaleSchedule(sides)
            x = case.tokens(schedule.span(), 2, dtype)
            with torch.no_grad():
                whole = run(mixer, x, [schedule.span()])
                for spans in splits(schedule):
                    error, number = worst(run(mixer, x, spans), whole)
                    if not error <= tolerance:
                        yield (
                            f"{of_sides(schedule)}, {scales(*spans)}: {token(schedule, number)} differs from the whole "
                            f"image at once, by {error:.1e} of the largest output ({NAMES[dtype]}; allowed: "
                            f"{tolerance:g}): its state does not hold what the whole image sees"
                        )


def worst(one: Tensor, other: Tensor) -> tuple[float, int]:
    """Largest difference relative to the largest value of `other`, and the token that has it."""
    difference = (one - other).abs().amax((0, 2)).nan_to_num(torch.inf, torch.inf)
    return float(difference.max() / other.abs().max().clamp_min(1e-300)), int(difference.argmax())


def sees(mixer: Mixer, schedule: ScaleSchedule) -> NDArray[np.bool_]:
    """`(L, L)`: whether the output of a token (row) depends on another (column), by gradient or by another input."""
    torch.manual_seed(2)
    length, width = schedule.num_tokens, mixer.config.width
    x = torch.randn(1, length, width, dtype=torch.float64, requires_grad=True)
    y, _ = call(mixer, x, schedule.span(), None)
    mixed = (y[0] * torch.randn_like(y[0])).sum(-1)  # a plain sum is constant behind a norm
    found = torch.zeros(length, length, dtype=torch.bool)
    if mixed.requires_grad:
        for row in range(length):
            (gradient,) = torch.autograd.grad(mixed[row], x, retain_graph=True, materialize_grads=True)
            found[row] = gradient[0].abs().sum(-1) > 0
    with torch.no_grad():  # what no gradient shows: a choice, a rounding
        changed = x.detach().repeat(length, 1, 1)
        changed[range(length), range(length)] *= -2
        difference = (call(mixer, changed, schedule.span(), None)[0] - y).abs().amax(-1).T
        found |= difference > 1e-9 * y.abs().max()
    return found.numpy()


def visible(case: Case) -> Iterator[str]:
    """A token sees exactly the tokens that `visible` says, and none of a finer scale."""
    cls, settings = case.chosen
    mixer = case.mixer()
    for sides in SIDES:
        schedule = ScaleSchedule(sides)
        length, where = schedule.num_tokens, of_sides(schedule)
        said = np.asarray(cls.visible(settings, schedule))
        if said.shape != (length, length) or said.dtype != np.bool_:
            yield f"{where}: visible gives {said.dtype} {said.shape}; wanted: bool ({length}, {length})"
            continue
        levels = np.array(schedule.levels)
        finer = levels[:, None] < levels
        actual, where = sees(mixer, schedule), f"{where}, {scales(schedule.span())}"
        yield from _pairs(actual & finer, schedule, f"{where}: {{0}} sees {{1}}, of a finer scale")
        yield from _pairs(said & finer, schedule, f"{where}: visible lets {{0}} see {{1}}, of a finer scale")
        yield from _pairs(actual & ~said & ~finer, schedule, f"{where}: {{0}} sees {{1}}, which visible does not say")
        yield from _pairs(
            said & ~actual & ~finer, schedule, f"{where}: visible says that {{0}} sees {{1}}; it does not"
        )


def _pairs(wrong: NDArray[np.bool_], schedule: ScaleSchedule, message: str) -> Iterator[str]:
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        more = f" ({count} more such pairs)" if (count := int(wrong.sum()) - 1) else ""
        yield message.format(token(schedule, row), token(schedule, column)) + more


def batch(case: Case) -> Iterator[str]:
    """An image does not depend on those beside it, be they ever so large."""
    schedule = ScaleSchedule(SIDES[0])
    for dtype, tolerance in TOLERANCE.items():
        mixer = case.mixer(dtype)
        x = case.tokens(schedule.span(), 4, dtype)
        x[1] *= LOUD
        for spans in ([schedule.span()], schedule.steps()):
            with torch.no_grad():
                together = run(mixer, x, spans)
                for i in range(len(x)):
                    error, number = worst(together[i : i + 1], run(mixer, x[i : i + 1], spans))
                    if not error <= tolerance:
                        yield (
                            f"{scales(*spans)}: image {i} of a batch differs from the same image alone, at "
                            f"{token(schedule, number)} by {error:.1e} of the largest output ({NAMES[dtype]}; allowed: "
                            f"{tolerance:g})"
                        )


def training_mode(case: Case) -> Iterator[str]:
    """Training and evaluation mode give the same: teacher forcing and sampling are one code path."""
    mixer, schedule = case.mixer(), ScaleSchedule(SIDES[0])
    x = case.tokens(schedule.span(), 2)
    with torch.no_grad():
        for spans in ([schedule.span()], schedule.steps()):
            torch.manual_seed(0)
            training = run(mixer.train(), x, spans)
            if not torch.equal(training, run(mixer.eval(), x, spans)):
                yield f"{scales(*spans)}: train() and eval() give different outputs; wanted: the same, without dropout"


def gradients(case: Case) -> Iterator[str]:
    """Every parameter gets a gradient, and the same for every split."""
    mixer, schedule = case.mixer(), ScaleSchedule(SIDES[0])
    x = case.tokens(schedule.span(), 2).requires_grad_()
    wanted = {"the tokens": x, **dict(mixer.named_parameters())}
    found = {}
    for name, spans in (("whole", [schedule.span()]), ("steps", schedule.steps())):
        y = run(mixer, x, spans)
        if not y.requires_grad:
            yield f"{scales(*spans)}: no gradient reaches anything: the outputs are detached"
            return
        mixed = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        found[name] = torch.autograd.grad(mixed, list(wanted.values()), materialize_grads=True)
    for name, whole, steps in zip(wanted, found["whole"], found["steps"], strict=True):
        if not bool(whole.abs().sum() > 0):
            yield f"{name}: no gradient reaches it"
        elif not torch.allclose(steps, whole, rtol=1e-8, atol=1e-9 * float(whole.abs().max())):
            yield f"{name}: its gradient through the state, step by step, is not that of the whole image at once"


def half_precision(case: Case) -> Iterator[str]:
    """In bf16, by autocast and by weights, outputs and gradients are finite."""
    schedule = ScaleSchedule(SIDES[0])
    for way in ("autocast", "weights"):
        dtype = torch.float32 if way == "autocast" else torch.bfloat16
        mixer = case.mixer(dtype)
        x = case.tokens(schedule.span(), 2, dtype)
        where = f"bf16 {'by autocast' if way == 'autocast' else 'weights'}"
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            for spans in ([schedule.span()], schedule.steps()):
                y = run(mixer, x, spans)
                if not bool(y.isfinite().all()):
                    yield f"{where}, {scales(*spans)}: outputs that are not finite"
            y, _ = call(mixer, x, schedule.span(), None)
        if way == "weights" and y.dtype != dtype:
            yield f"{where}: gives {y.dtype} for {dtype}; wanted: the dtype of the tokens"
        if y.requires_grad:
            y.float().square().mean().backward()
        for name, p in mixer.named_parameters():
            if p.grad is not None and not bool(p.grad.isfinite().all()):
                yield f"{where}: the gradient of {name} is not finite"
