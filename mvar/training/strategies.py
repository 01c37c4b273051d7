"""How the processes of a training share a step: its batch in micro-batches, and who holds which weights."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mvar.config import OptimConfig, RuntimeConfig
from mvar.errors import UserError
from mvar.memory import give_back_freed_memory, provide, release
from mvar.training.contract import Objective, Tensors
from mvar.training.shares import copy_share, whole

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule

NO_MEANS = "runtime.strategy: fsdp keeps no running means of the weights (train.ema); allowed: ddp"


def num_parts(runtime: RuntimeConfig, optim: OptimConfig, processes: int) -> int:
    """Micro-batches of each process in a step.

    Raises:
        UserError: the batch does not divide; says into what it would.
    """
    batch, size = optim.batch_size, runtime.images_at_once
    if size:
        if batch % (processes * size):
            raise UserError(
                f"micro_batch: {size} images in {processes} processes do not divide batch_size {batch}; "
                + (f"allowed: divisors of {batch // processes}" if batch % processes == 0 else _allowed(processes))
            )
        return batch // processes // size
    parts = processes * runtime.accumulate
    if batch % parts:
        raise UserError(
            f"batch_size: {batch} does not divide into {processes} processes x accumulate {runtime.accumulate}; "
            f"allowed: multiples of {parts}"
        )
    return runtime.accumulate


def _allowed(processes: int) -> str:
    return f"allowed: a batch_size that {processes} processes divide"


class LossModule(nn.Module):
    """The objective's loss as a module's forward, which is what DDP wraps."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.module = objective.module
        self._loss = objective.loss

    def forward(self, rows: Tensors, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self._loss(rows, step)


class Whole:
    """Every process holds the whole module: DDP, or one process alone."""

    def __init__(self, objective: Objective, fabric: "Fabric") -> None:
        self._objective, self._fabric = objective, fabric
        _provided(objective.module).to(fabric.device)

    def begin(self) -> None:
        """Give the module its values of before the first step, if it has none: no checkpoint has later ones.

        The first process makes them, and hands them to the others tensor by tensor.
        """
        if self._objective.first is None:
            return
        device, first = self._fabric.device, self._objective.first() if self._fabric.is_global_zero else None
        values = first.state_dict() if first else {}
        for name, target in self._objective.module.state_dict().items():
            value = values[name].to(device) if first else torch.empty(target.shape, dtype=target.dtype, device=device)
            if self._fabric.world_size > 1:
                torch.distributed.broadcast(value, 0)
            copy_share(target, value)
            del value
            if first:
                release(values[name])
        give_back_freed_memory()

    def wrapped(self) -> "_FabricModule | LossModule":
        """What computes the loss."""
        return self._fabric.setup_module(LossModule(self._objective))

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients; those of the last one are averaged over the processes."""
        self._fabric.backward(loss)

    def alone(self, model: Any, is_last: bool) -> AbstractContextManager[Any]:
        """While a micro-batch is computed whose gradients stay with their process until the last one's."""
        return self._fabric.no_backward_sync(model, enabled=not is_last)

    def gathered(self) -> AbstractContextManager[Any]:
        """While the module that the objective came with has the weights of now, on the device, in the first process."""
        return nullcontext()

    def close(self) -> None:
        """The objective has the module again that it came with, with the weights of now, on the device."""


class Sharded(Whole):
    """Each process holds a share of every layer's weights, gradients and moments (FSDP2); a layer is whole while it
    works. What is trained is a copy of the module, so that the module itself stays what it is; meanwhile its parameters
    hold names and shapes alone.

    Gradients of every micro-batch are shared out at once: kept whole, they would undo what sharding saves.
    """

    def __init__(self, objective: Objective, fabric: "Fabric") -> None:
        self._objective, self._fabric, self._own = objective, fabric, objective.module
        objective.module = _without_values(self._own)
        share_out(objective.module, objective.units(), fabric.device.type, fabric.world_size)
        objective.module.to_empty(device=fabric.device)  # of a share: the whole never lies there
        for buffer, value in zip(objective.module.buffers(), self._own.buffers(), strict=True):
            copy_share(buffer, value)
        for target, value in zip(objective.module.parameters(), self._own.parameters(), strict=True):
            if objective.first is None:
                copy_share(target, value)
            release(value)  # one after another: nothing is held twice
        give_back_freed_memory()  # processes that load pictures are forked from here

    def wrapped(self) -> LossModule:
        return LossModule(self._objective)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def alone(self, model: Any, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        self._gather()
        if self._fabric.is_global_zero:
            self._own.to(self._fabric.device)
        try:
            yield
        finally:
            for value in self._own.cpu().parameters():
                release(value)
            give_back_freed_memory()

    def _gather(self) -> None:
        """The weights of now for the first process's own module; every process is needed for each of them."""
        is_first = self._fabric.is_global_zero
        kept = _provided(self._own).state_dict() if is_first else {}
        for name, value in self._objective.module.state_dict().items():
            value = whole(value)
            if is_first:
                kept[name].copy_(value)

    def close(self) -> None:
        self._gather()
        self._objective.module = _provided(self._own).to(self._fabric.device)
        for tensor in (*self._own.parameters(), *self._own.buffers()):
            torch.distributed.broadcast(tensor.data, 0)


def share_out(module: nn.Module, units: Sequence[nn.Module], device: str, processes: int) -> None:
    """Leave of a module its share in each process, on its device, unit by unit (FSDP2); all processes call it.

    Args:
        module: the same in all of them.
        units: submodules of it that are whole while they work, e.g. layers.
        device: `cuda` or `cpu`.
        processes: of the process group.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # layers return views, of their modulation, and nothing writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device, (processes,))
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _without_values(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters are on `meta`."""
    made = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, dict[int, Any](made))


def _provided(module: nn.Module) -> nn.Module:
    """The module, whose parameters have memory, be it with any values."""
    for parameter in module.parameters():
        provide(parameter)
    return module


def strategy_of(runtime: RuntimeConfig, objective: Objective, fabric: "Fabric") -> Whole:
    """How the processes share the module; one process alone, and an objective that names no units, has it whole."""
    is_sharded = runtime.strategy == "fsdp" and fabric.world_size > 1 and objective.units()
    return Sharded(objective, fabric) if is_sharded else Whole(objective, fabric)
