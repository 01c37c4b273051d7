"""Memory for what a mixer leaves from scale to scale: allocated once, and found at the same addresses in every pass."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mvar.mixers.cutting import map_tensors

ALIGNMENT = 64  # bytes, as torch allocates on a CPU: kernels may choose, and so round, by it


def tensors_in(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, in the order in which `map_tensors` meets them."""
    found: list[Tensor] = []

    def see(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(see, state)
    yield from found


class Room:
    """One block of memory for the states of one mixer, one after another: each scale's takes the place of the last.

    Args:
        num_bytes: of the largest state, as the mixer's contract says it (`Mixer.state_bytes`, of all images); where
            a state turns out to be larger, the block grows.
    """

    def __init__(self, num_bytes: int = 0) -> None:
        self._num_bytes = num_bytes
        self._memory: Tensor | None = None

    def keep(self, state: Any, given: Any = None) -> Any:
        """A state that a mixer left, with its tensors, strides and all, in this memory.

        Args:
            state: of nested tuples, lists, mappings or dataclasses of tensors.
            given: the state that the mixer was given. Its tensors that are in `state` again were filled in place
                (`Mixer.prepared`): they stay where they are.
        """
        same, left = {id(tensor) for tensor in tensors_in(given)}, list(tensors_in(state))
        if all(id(tensor) in same for tensor in left):
            return state
        tensors = [tensor for tensor in left if id(tensor) not in same or self._holds(tensor)]
        places, size = [], 0
        for tensor in tensors:
            places.append(size)
            size += -(-tensor.numel() * tensor.itemsize // ALIGNMENT) * ALIGNMENT
        if self._memory is None or size > self._memory.numel():
            size = max(size, self._num_bytes + ALIGNMENT * len(tensors))
            self._memory = tensors[0].new_empty(size, dtype=torch.uint8)
        rooms = [self._at(place, tensor) for place, tensor in zip(places, tensors, strict=True)]
        # what lies here already, elsewhere, would be overwritten before it is moved
        sources = [tensor.clone() if self._holds(tensor) else tensor for tensor in tensors]
        kept = {id(tensor): room for tensor, room in zip(tensors, rooms, strict=True)}
        for room, source in zip(rooms, sources, strict=True):
            room.copy_(source)
        return map_tensors(partial(_moved, kept), state)

    def _holds(self, tensor: Tensor) -> bool:
        memory = self._memory
        return memory is not None and tensor.untyped_storage() is memory.untyped_storage()

    def _at(self, place: int, tensor: Tensor) -> Tensor:
        """Room for such a tensor, with its order of dimensions in memory."""
        assert self._memory is not None
        stride = torch.empty_like(tensor, device="meta").stride()
        part = self._memory[place : place + tensor.numel() * tensor.itemsize]
        return part.view(tensor.dtype).as_strided(tensor.shape, stride)


def _moved(kept: dict[int, Tensor], tensor: Tensor) -> Tensor:
    return kept.get(id(tensor), tensor)
