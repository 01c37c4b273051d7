"""A training's checkpoints, as its processes write and find them together."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mvar.errors import warn
from mvar.training import checkpoint, shards
from mvar.training.kept import MODULE, OPTIMIZER, Kept, first_sound, join, newest_first, remove_begun, split

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Checkpoints:
    """Those of one training. One process writes a file, several a folder; what lies on GPUs in the background.

    Args:
        directory: where they lie.
        fabric: the processes.
    """

    def __init__(self, directory: Path, fabric: "Fabric") -> None:
        self._directory, self._fabric = directory, fabric
        self._alone = fabric.world_size == 1
        # of the thread that writes: a collective of training must not come in between
        self._group: Any = None if self._alone else torch.distributed.new_group(backend="gloo")
        self._writing: shards.Writing | None = None

    def newest(self) -> Kept | None:
        """The newest that can be read, the same in all processes; one that cannot is said and stepped over."""
        if self._alone:
            return first_sound(newest_first(self._directory), checkpoint.open_kept)
        is_first = self._fabric.is_global_zero
        if is_first:
            remove_begun(self._directory)
        names = self._fabric.broadcast([path.name for path in newest_first(self._directory)] if is_first else [])
        tell = warn if is_first else lambda text: None
        return first_sound([self._directory / name for name in names], self._open, tell)

    def _open(self, path: Path) -> Kept:
        rank, world = self._fabric.global_rank, self._fabric.world_size
        opened: list[Kept] = []
        shards.together(lambda: opened.append(checkpoint.open_kept(path, rank, world)), self._group)
        (found,) = opened
        if isinstance(found, shards.Shards):
            found.group = self._group
        return found

    def save(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Write one; of several processes each its part. From GPUs a copy is written while training goes on; on CPUs
        training waits, as the copy would take the memory that training needs.

        Args:
            step: steps done.
            state: with the tensors of this process; the first one's is what is kept of the rest.
            keep: how many stay.

        Raises:
            OSError: this one, or the one before it, could not be written.
        """
        if self._alone:
            checkpoint.save(self._directory, step, state, keep)
            return
        self.finish()
        path, on_cpu = shards.path_of(self._directory, step), self._fabric.device.type == "cpu"
        self._writing = shards.Writing(path, *split(state), keep, self._group, as_they_are=on_cpu)
        if on_cpu:
            self.finish()

    def finish(self) -> None:
        """Until what is being written is complete; raises what `save` raises."""
        writing, self._writing = self._writing, None
        if writing:
            writing.wait()

    def close(self) -> None:
        """No more is written; raises what `save` raises."""
        self.finish()
        if self._group:
            torch.distributed.destroy_process_group(self._group)


def take(kept: Kept, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and moments, or this process's share of them, tensor by tensor: nothing is held twice.

    Raises:
        KeyError, ValueError: another model's.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    weights = {f"{MODULE}.{name}": value for name, value in module.state_dict().items()}
    moments: dict[str, Tensor] = {}
    for name, (shape, dtype) in kept.sizes().items():
        kind, number = name.split(".")[:2]
        if kind == OPTIMIZER:
            moments[name] = _room(parameters[int(number)], shape, dtype)
        elif name not in weights:
            raise KeyError(name)
    kept.fill(weights | moments)
    optimizer.load_state_dict(join(moments, kept.rest)[OPTIMIZER])


def _room(parameter: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """For a tensor of the optimizer: shared as the parameter is whose shape it has."""
    if parameter.shape == shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(shape, dtype=dtype)
