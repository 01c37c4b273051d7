"""The contract of an objective: what the training loop asks of whatever is trained, and the order of the data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

# Streams of random numbers are seeded by (seed, step or epoch, stream): no two purposes share one. None is 0, because
# numpy does not tell (1, 2, 0) from (1, 2).
BATCH_STREAM, BEFORE_STEP_STREAM, FORWARD_STREAM, ORDER_STREAM, CROP_STREAM = 1, 2, 3, 4, 5

Tensors = tuple[Tensor, ...]  # tensors that share their first dimension: images of a batch


class Objective(ABC):
    """A module, its batches and its loss. `training.loop.fit` trains it.

    A batch is defined for the whole step, over all processes and micro-batches: `batch` decides every row of it,
    random choices included, and the loop hands each process and micro-batch its slice. So the result does not depend
    on how many processes or micro-batches share the work. All that is random must come from `rng` or from the step:
    that makes a resumed training identical to an uninterrupted one.
    """

    module: nn.Module  # what is trained; its parameters and buffers are what checkpoints hold
    # Makes another such module, with the values of before the first step, where `module` has none yet: the first
    # process makes it where no checkpoint has later ones. None: `module` has them.
    first: Callable[[], nn.Module] | None = None
    tokens: int = 0  # that a step of the whole batch predicts; 0: not told
    flops: int = 0  # of that step, forward and backward; 0: not told
    decodes: bool = False  # whether `load` decodes pictures: worth processes of their own, where there are workers
    wants_metrics: bool = True  # set by the loop: whether this step is logged, and `loss` must give metrics at all

    @property
    def encoding_flops(self) -> int:
        """Of encoding a step's images in fp32, where that is a part of the step."""
        return 0

    def units(self) -> Sequence[nn.Module]:
        """Submodules that `runtime.strategy=fsdp` shards one by one, e.g. layers; none: each process has it whole."""
        return ()

    @abstractmethod
    def batch(self, step: int, rng: np.random.Generator) -> Tensors:
        """The rows of a step's whole batch, on the CPU. `rng` is seeded by (seed, step). Must be cheap: see `load`."""

    def load(self, rows: Tensors) -> Tensors:
        """Turn a slice of `batch` into the tensors that `loss` gets, e.g. read image files.

        Called ahead of time where `runtime.num_workers` is not 0, by threads, or by processes where it `decodes`: so it
        must not change the objective.
        """
        return rows

    def before_step(self, step: int, rng: np.random.Generator, optimizer: Optimizer) -> None:  # noqa: B027  optional
        """Called in every process before each step; may change the module, in the same way in all of them."""

    @abstractmethod
    def loss(self, batch: Tensors, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the rows, and metrics: 0-d tensors, means over the rows, named as in metrics.jsonl.

        `train/loss` is added by the loop. Where `wants_metrics` is false they may be left out.
        """

    def state_dict(self) -> dict[str, Any]:
        """State beside the module's that checkpoints must hold: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  optional
        """Restore what `state_dict` gave."""


@runtime_checkable
class DrawsForBatch(Protocol):
    """A module that draws random numbers for the whole batch of a step and takes those of its part of it.

    The loop sets `batch_part`, the first row and the size of that batch: `transformer.DropPath` is such a module.
    """

    batch_part: tuple[int, int] | None


class DataOrder:
    """Which items each step sees: every epoch a permutation drawn from (seed, epoch), batches running across epochs."""

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def epochs(self, step: int) -> np.ndarray:
        """The epoch that each item of a step's batch is of, `(batch_size,)` int64."""
        return self._positions(step)[0]

    def rows(self, step: int) -> np.ndarray:
        """Item numbers of a step's batch, `(batch_size,)` int64."""
        epochs, offsets = self._positions(step)
        rows = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            rows[inside] = self._permuted(int(epoch))[offsets[inside]]
        return rows

    def _positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), self.num_items)

    def _permuted(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch, ORDER_STREAM))
            self._epoch, self._permutation = epoch, rng.permutation(self.num_items)
        return self._permutation
