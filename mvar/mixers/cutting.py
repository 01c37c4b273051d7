"""Interventions on one mixer of a trained model, through its one code path: pairs cut, state or output replaced.

Each is a context: inside it the mixer does without, afterwards it is as before. Nothing is copied or changed of its
weights, and a mixer that nothing is cut in runs as if this module was not there.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mvar.kernels.attention import Severed
from mvar.mixers.base import Mixer
from mvar.scales import Span

PARTS = {
    "keys": "attention: pairs of a query and a key, by head; the mixer heeds `severed`",
    "state": "the state before a scale: nested tuples, lists, mappings or dataclasses of tensors whose first dimension "
    "is the image, and zeros are what nothing has left",
}


@contextmanager
def severing(mixer: Mixer, severed: Severed) -> Iterator[None]:
    """Inside the block its attention does without some pairs."""
    before = mixer.severed
    mixer.severed = severed
    try:
        yield
    finally:
        mixer.severed = before


@contextmanager
def editing_state(mixer: Mixer, scales: Collection[int], edit: Callable[[Any, int], Any]) -> Iterator[None]:
    """Inside the block the state before some scales is `edit(state, scale)`; a span is run in pieces between them."""
    mixer.forward = partial(_in_pieces, mixer.forward, frozenset(scales), edit)  # the instance's, before the class's
    try:
        yield
    finally:
        del mixer.forward


def _in_pieces(
    forward: Callable[..., tuple[Tensor, Any]],
    scales: frozenset[int],
    edit: Callable[[Any, int], Any],
    x: Tensor,
    span: Span,
    state: Any = None,
) -> tuple[Tensor, Any]:
    inner = sorted(scales & {*span.scales[1:]})
    outputs = []
    for first, last in pairwise((span.first, *inner, span.last)):
        piece = span.schedule.span(first, last)
        if first in scales and state is not None:
            state = edit(state, first)
        y, state = forward(x[:, piece.start - span.start : piece.stop - span.start], piece, state)
        outputs.append(y)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), state


@contextmanager
def editing_output(mixer: Mixer, edit: Callable[[Tensor, Span], Tensor]) -> Iterator[None]:
    """Inside the block what it adds to the tokens `(B, L, D)` of a span is `edit(output, span)`."""

    def replaced(_: Any, arguments: tuple[Any, ...], result: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return edit(result[0], arguments[1]), result[1]

    handle = mixer.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


def map_tensors(change: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """A state whose tensors are `change(tensor, ...)`, with those of other states of the same form."""
    again = partial(map_tensors, change)
    if isinstance(state, Tensor):
        return change(state, *others)
    if isinstance(state, dict):
        return {name: again(part, *(other[name] for other in others)) for name, part in state.items()}
    if isinstance(state, tuple | list):
        parts = [again(*parts) for parts in zip(state, *others, strict=True)]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if is_dataclass(state) and not isinstance(state, type):
        names = [field.name for field in fields(state) if field.init]
        values = {n: again(getattr(state, n), *(getattr(other, n) for other in others)) for n in names}
        return replace(state, **values)
    return state


def emptied(state: Any, scale: int = 0) -> Any:
    """The state that nothing has left: zeros."""
    return map_tensors(torch.zeros_like, state)
