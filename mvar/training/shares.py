"""Tensors that several processes share, each holding a part of every one (torch's DTensor)."""

from typing import Any, cast

import torch
from torch import Tensor


def is_shared(value: object) -> bool:
    """Whether it is torch's DTensor, whose module takes seconds to import: one process alone needs none of it."""
    return hasattr(value, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's share; of a tensor that all have, the tensor."""
    return cast("Any", tensor).to_local() if is_shared(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, in every process."""
    return cast("Any", tensor).full_tensor() if is_shared(tensor) else tensor


@torch.no_grad()
def copy_share(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into another one, or this process's share of it into its share."""
    if is_shared(target):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    local(target).copy_(local(value))
