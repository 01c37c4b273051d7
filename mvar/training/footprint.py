"""Memory of one training step on a GPU, counted on tensors without values: what the plan and the benchmark print.

    peak = weights, gradients and AdamW's two moments: 16 bytes a parameter, shared by the processes where sharded
         + what the forward pass keeps for the backward pass
         + the largest layer, where layers are recomputed or gathered one at a time
         + logits and their gradient, fp32

What a GPU's allocator, its kernels' work space and the network's buffers need comes on top; for that a limit is set
below the card's memory.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mvar.config import RunConfig, RuntimeConfig
from mvar.kernels.fake_gpu import fake_gpu
from mvar.kernels.recompute import Kept, is_dear
from mvar.transformer import Block, ScaleTransformer

Strategy = Literal["ddp", "fsdp"]
PARAMETER_BYTES = 16  # fp32: weight, gradient, two moments
GATHERED = 2  # layers that are whole at once where the weights are sharded: the one that works and the next


@dataclass(frozen=True)
class Footprint:
    """Bytes of one step, by part."""

    state: int  # weights, gradients, moments
    gathered: int  # whole weights and gradients of sharded layers
    saved: int  # kept for the backward pass, the loss included
    layer: int  # of one layer while it is recomputed
    logits: int  # and their gradient

    @property
    def peak(self) -> int:
        """All together."""
        return self.state + self.gathered + self.saved + self.layer + self.logits


class Saved:
    """Counts the bytes that a forward pass keeps for the backward pass, each storage once, parameters aside."""

    def __init__(self, module: nn.Module, kept: Kept = "none") -> None:
        self._kept = kept
        self._own = {p.untyped_storage()._cdata for p in module.parameters()}
        self._found: dict[int, Any] = {}  # storages, held: an address may be used again

    @contextmanager
    def counting(self) -> Iterator[None]:
        """While what is kept is counted."""
        products = _Products(self.add) if self._kept == "selective" else nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor), products:
            yield

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor; returns it."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._found[storage._cdata] = storage
        return tensor

    @property
    def total(self) -> int:
        """Bytes so far."""
        return self.beyond(None)

    def beyond(self, other: "Saved | None") -> int:
        """Bytes that another one has not counted."""
        known = other._found if other else {}
        return sum(storage.nbytes() for place, storage in self._found.items() if place not in known)


class _Products(TorchDispatchMode):
    """Tells of what `selective` keeps, which torch hides from the hooks of saved tensors."""

    def __init__(self, tell: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if is_dear(func):
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, Tensor):
                    self._tell(tensor)
        return out


def loss_of(module: ScaleTransformer, labels: Tensor, inputs: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and loss as training has them."""
    logits, _ = module(labels, inputs)
    return logits, F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").mean()


def footprint(config: RunConfig, images: int, kept: Kept, strategy: Strategy, processes: int) -> Footprint:
    """Bytes on one GPU of a step of a run's generator.

    Args:
        config: the run.
        images: that a process works on at once.
        kept: `runtime.checkpoint_activations`.
        strategy: `ddp`: every process holds everything; `fsdp`: its share.
        processes: GPUs.
    """
    # pydantic gives frozen models a hash, its stub knows that only of models with frozen=True in the class line.
    counted = _counted(config.model, config.token_space, config.train.precision, config.runtime.attention_backend, images, kept)  # pyright: ignore[reportArgumentType]  # fmt: skip  # noqa: E501
    share = processes if strategy == "fsdp" else 1
    return Footprint(
        state=-(-PARAMETER_BYTES * counted.parameters // share),
        gathered=8 * GATHERED * counted.largest if share > 1 else 0,
        saved=counted.saved,
        layer=counted.layer,
        logits=2 * counted.logits,
    )


@dataclass(frozen=True)
class _Counted:
    parameters: int
    largest: int  # parameters of the largest layer
    saved: int
    layer: int
    logits: int


@cache
def _counted(model: Any, space: Any, precision: str, attention: Any, images: int, kept: Kept) -> _Counted:
    runtime = RuntimeConfig(checkpoint_activations=kept, scan_backend="torch")
    with torch.device("meta"):
        module = ScaleTransformer(model, space, runtime)
    sizes = [sum(p.numel() for p in block.parameters()) for block in module.each_block()]
    with fake_gpu(precision):
        module.to_empty(device="cuda").train()
        logits, saved = step(module, images, kept, "cuda")
        layer = 0 if kept == "none" else layers(module, images, kept, "cuda")
    return _Counted(sum(p.numel() for p in module.parameters()), max(sizes), saved, layer, logits.numel() * 4)


def step(module: ScaleTransformer, images: int, kept: Kept, device: str) -> tuple[Tensor, int]:
    """Logits of a training step, and the bytes that are kept for its backward pass."""
    schedule, saved = module.schedule, Saved(module, kept)
    labels = torch.zeros(images, dtype=torch.long, device=device)
    tokens = torch.zeros(images, schedule.num_tokens, dtype=torch.long, device=device)
    shape = images, schedule.num_tokens - schedule.lengths[0], module.space.code_channels
    with saved.counting(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the hooks: see `_Products`
        logits, _ = loss_of(module, labels, torch.zeros(shape, device=device), tokens)
    return logits, saved.total


def layers(module: ScaleTransformer, images: int, kept: Kept, device: str) -> int:
    """Bytes that the largest layer keeps while it is recomputed."""
    return max(_layer(block, module, images, kept, device) for block in _distinct(module))


def _distinct(module: ScaleTransformer) -> list[Block]:
    """One layer of each kind, the last: it has drop path where any has."""
    return list({tuple(block.mixer_names): block for block in module.each_block()}.values())


def _layer(block: Block, module: ScaleTransformer, images: int, kept: Kept, device: str) -> int:
    """What a layer keeps while it is recomputed, beside its input and what was kept of it all along."""
    width, schedule = module.config.width, module.schedule
    x = torch.empty(images, schedule.num_tokens, width, device=device, requires_grad=True)
    condition = torch.empty(images, width, device=device, requires_grad=True)
    if module.config.shared_adaln:
        condition = torch.empty(images, 1, 3 * block.num_branches, width, device=device, requires_grad=True)
    before = Saved(block)
    products = _Products(before.add) if kept == "selective" else nullcontext()
    saved = Saved(block)
    with saved.counting(), products:
        block(x, condition, schedule.span(), None)
    before.add(x)
    return saved.beyond(before)
