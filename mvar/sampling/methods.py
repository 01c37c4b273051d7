"""The sampling method of a config: its form of guidance and its filter, asked in one place. Needs no torch itself."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mvar.config import SampleConfig
from mvar.errors import UserError
from mvar.registries import FILTERS, GUIDANCE
from mvar.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Kept = Callable[[int, "Tensor"], "Tensor | None"]  # (scale, logits) -> what is kept of them, see `Filter.kept`


def guidance_weights(sample: SampleConfig, num_scales: int) -> list[float]:
    """The t of every scale, see `Guidance`; zeros where `cfg_scale` is 0.

    Raises:
        UserError: an unknown form; one of the user's own that raises, or gives something else than finite numbers.
    """
    if not sample.cfg_scale:
        return [0.0] * num_scales
    name, settings = sample.guidance, sample.settings_of(sample.guidance)
    with _called(GUIDANCE, name):
        form = GUIDANCE.find(name)()
        weights = [float(form.weight(s, num_scales, sample.cfg_scale, settings)) for s in range(num_scales)]
    for scale, weight in enumerate(weights):
        if not math.isfinite(weight):
            raise UserError(f"sample.guidance: {name} gives scale {scale} the weight {weight}; allowed: finite numbers")
    return weights


def is_guided(sample: SampleConfig, num_scales: int) -> bool:
    """Whether the half without a class is run too: at any scale, then at all, whose state the later ones need."""
    return any(guidance_weights(sample, num_scales))


def kept_by(sample: SampleConfig, num_scales: int) -> Kept:
    """What the filter of a config keeps of each scale's logits.

    Raises:
        UserError: an unknown filter. The function itself: one of the user's own that raises, or gives something else
            than `Filter.kept` allows.
    """
    name, settings = sample.filter, sample.settings_of(sample.filter)
    with _called(FILTERS, name):
        found = FILTERS.find(name)()

    def kept(scale: int, logits: "Tensor") -> "Tensor | None":
        with _called(FILTERS, name):
            values = found.kept(logits, scale, num_scales, sample, settings)
        if values is not None and not _fits(values, logits):
            told = f"{tuple(values.shape)} {values.dtype}" if hasattr(values, "dtype") else type(values).__name__
            n, v = logits.shape[1:]
            raise UserError(
                f"sample.filter: {name} gives {told}; allowed: the smallest logit that is kept (B, {n}, 1), a mask "
                f"(B, {n}, {v}) of bool, or None"
            )
        return values

    return kept


def _fits(values: "Tensor", logits: "Tensor") -> bool:
    from torch import bool as boolean

    shape = tuple(getattr(values, "shape", ()))
    if shape == (*logits.shape[:-1], logits.shape[-1]):
        return values.dtype is boolean
    return shape == (*logits.shape[:-1], 1) and values.dtype == logits.dtype


@contextmanager
def _called(registry: "Registry[object]", name: str) -> Iterator[None]:
    """What goes wrong in a class of the user's own is one line; in ours it is a fault, and looks like one."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if name not in registry.own:
            raise
        raise UserError(f"{registry.field}: {name} raises {type(error).__name__}: {error}") from error
