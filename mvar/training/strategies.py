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
from mvar.memory import give_back_freed_memory
from mvar.training.contract import Objective, Tensors
from mvar.training.shares import whole

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
        objective.module.to(fabric.device)

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
    works. What is trained is a copy of the module, so that the module itself stays what it is; meanwhile it holds names
    and shapes alone.

    Gradients of every micro-batch are shared out at once: kept whole, they would undo what sharding saves.
    """

    def __init__(self, objective: Objective, fabric: "Fabric") -> None:
        self._objective, self._fabric, self._own = objective, fabric, objective.module
        # fully_shard moves what it shares out to the device itself, unit by unit: the whole never lies there
        objective.module = copy.deepcopy(self._own)
        share_out(objective.module, objective.units(), fabric.device.type, fabric.world_size)
        _release(self._own)

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
            _release(self._own.cpu())

    def _gather(self) -> None:
        now = self._objective.module.state_dict()
        found = {name: self._of_all(value) for name, value in now.items()}
        if self._fabric.is_global_zero:
            _provide(self._own).load_state_dict(found)

    def _of_all(self, value: Tensor) -> Tensor | None:
        """A whole tensor on the CPU: every process is needed for it, and one keeps it."""
        value = whole(value)
        return value.cpu() if self._fabric.is_global_zero else None

    def close(self) -> None:
        self._gather()
        self._objective.module = _provide(self._own).to(self._fabric.device)
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


def _release(module: nn.Module) -> None:
    """Give the memory of a module's tensors back; names, shapes and the tensors themselves stay."""
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        if storage.resizable() and storage.nbytes() == tensor.nbytes:  # it is no part of another's
            storage.resize_(0)
    give_back_freed_memory()  # processes that load pictures are forked from here


def _provide(module: nn.Module) -> nn.Module:
    """Memory for what was released, with any values in it; the module."""
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            storage.resize_(tensor.nbytes)
    return module


def strategy_of(runtime: RuntimeConfig, objective: Objective, fabric: "Fabric") -> Whole:
    """How the processes share the module; one process alone, and an objective that names no units, has it whole."""
    is_sharded = runtime.strategy == "fsdp" and fabric.world_size > 1 and objective.units()
    return Sharded(objective, fabric) if is_sharded else Whole(objective, fabric)
