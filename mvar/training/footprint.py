"""Memory of one training step on a GPU, counted on tensors without values: what the plan and the benchmark print.

    peak = weights, gradients and AdamW's two moments: 16 bytes a parameter, shared by the processes where sharded;
           four more for each running mean
         + what the forward pass keeps for the backward pass
         + the largest layer, where layers are recomputed or gathered one at a time; where weights are sharded also
           what is in no layer (embeddings, head), which is gathered first and stays whole
         + logits and their gradient, fp32
         + the frozen tokenizer, where images are encoded as they come; what it holds meanwhile, if that is more than
           the step's own, which is not there yet

All of this grows linearly with the images, and with the layers of one kind; so few of both are counted, and a plan of
the largest models takes seconds.

What a GPU's allocator, its kernels' work space and the network's buffers need comes on top; for that a limit is set
below the card's memory.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvar.config import RunConfig, RuntimeConfig
from mvar.data.crops import to_float
from mvar.data.online import CHUNK
from mvar.kernels.fake_gpu import fake_gpu
from mvar.kernels.recompute import Kept, is_dear
from mvar.tokenizer.model import Tokenizer
from mvar.training.counted_scan import scan_of, standing_in
from mvar.transformer import Block, ScaleTransformer

Strategy = Literal["ddp", "fsdp"]
PARAMETER_BYTES = 16  # fp32: weight, gradient, two moments
MEAN_BYTES = 4  # of a parameter, for each running mean (`train.ema`)
GATHERED = 2  # layers that are whole at once where the weights are sharded: the one that works and the next


@dataclass(frozen=True)
class Footprint:
    """Bytes of one step, by part."""

    state: int  # weights, gradients, moments, running means
    gathered: int  # whole weights and gradients of sharded layers
    saved: int  # kept for the backward pass, the loss included
    layer: int  # of one layer while it is recomputed
    logits: int  # and their gradient
    tokenizer: int = 0  # its weights, where it encodes on the device
    encoding: int = 0  # what it holds while it does, before the step holds anything

    @property
    def peak(self) -> int:
        """All together."""
        step = self.gathered + self.saved + self.layer + self.logits
        return self.state + self.tokenizer + max(step, self.encoding)


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
    scan = scan_of(config)
    counted = _counted(config.model, config.token_space, config.train.precision, kept, scan)  # pyright: ignore[reportArgumentType]  # fmt: skip
    share = processes if strategy == "fsdp" else 1
    tokenizer = encoding = 0
    if config.train.tokens == "online":
        tokenizer, encoding = _tokenizer(config.tokenizer, config.data.channels, min(images, CHUNK))  # pyright: ignore[reportArgumentType]  # fmt: skip
    return Footprint(
        state=-(-(PARAMETER_BYTES + MEAN_BYTES * len(config.train.ema)) * counted.parameters // share),
        gathered=8 * (GATHERED * counted.largest + counted.root) if share > 1 else 0,
        saved=counted.saved.at(images),
        layer=max(layer.at(images) for layer in counted.layers),
        logits=2 * counted.logits.at(images),
        tokenizer=tokenizer,
        encoding=encoding,
    )


@dataclass(frozen=True)
class Line:
    """Bytes that grow linearly with the images: those of two, and of three."""

    two: int
    three: int

    def at(self, images: int) -> int:
        return self.two + (images - 2) * (self.three - self.two)


@dataclass(frozen=True)
class _Counted:
    parameters: int
    largest: int  # parameters of the largest layer
    root: int  # of what is in no layer: embeddings and the head, which stay whole until the backward pass is done
    saved: Line
    layers: tuple[Line, ...]  # of each kind, while it is recomputed
    logits: Line


@cache
def _counted(model: Any, space: Any, precision: str, kept: Kept, scan: str | None) -> _Counted:
    with standing_in(scan) as runtime:
        return _count(model, space, precision, runtime.model_copy(update={"checkpoint_activations": kept}))


def _count(model: Any, space: Any, precision: str, runtime: RuntimeConfig) -> _Counted:
    kept = runtime.kept
    with torch.device("meta"):
        module = ScaleTransformer(model, space, runtime)
    sizes = [sum(p.numel() for p in block.parameters()) for block in module.each_block()]
    parameters = sum(p.numel() for p in module.parameters())
    with fake_gpu(precision):
        module.to_empty(device="cuda").train()
        both = [few_layers(module, images, kept, "cuda") for images in (2, 3)]
        found = [[0] if kept == "none" else layers(module, images, kept, "cuda") for images in (2, 3)]
    logits, saved = (Line(*values) for values in zip(*both, strict=True))
    root = parameters - sum(sizes)
    return _Counted(parameters, max(sizes), root, saved, tuple(Line(*one) for one in zip(*found, strict=True)), logits)


@cache
def _tokenizer(config: Any, channels: int, images: int) -> tuple[int, int]:
    """Bytes of a tokenizer's weights, and what encoding so many images at once holds beside them at most."""
    with torch.device("meta"):
        tokenizer = Tokenizer(config, channels)
    side = config.patch_sides[-1] * config.downsample
    with fake_gpu():
        tokenizer.to_empty(device="cuda").eval()
        pixels = torch.zeros(images, channels, side, side, dtype=torch.uint8, device="cuda")
        with Held() as held:
            tokenizer.encode(to_float(pixels))
    return sum(t.nbytes for t in (*tokenizer.parameters(), *tokenizer.buffers())), held.most


class Held(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are still held; the most that they ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _storage(tensor) not in given:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def few_layers(module: ScaleTransformer, images: int, kept: Kept, device: str) -> tuple[int, int]:
    """Bytes of the logits of a training step and of what is kept for its backward pass, by running one layer or two of
    each kind: all layers of a kind keep as much."""
    every = list(module.each_block())
    kinds = layer_kinds(module)
    least = {kind[0] for kind in kinds}

    def of(numbers: set[int]) -> tuple[Tensor, int]:
        module.blocks = nn.ModuleList(every[i] for i in sorted(numbers))
        return step(module, images, kept, device)

    try:
        logits, saved = of(least)
        more = sum((len(kind) - 1) * (of({*least, kind[1]})[1] - saved) for kind in kinds if len(kind) > 1)
    finally:
        module.blocks = nn.ModuleList(every)
    return logits.nbytes, saved + more


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


def layers(module: ScaleTransformer, images: int, kept: Kept, device: str) -> list[int]:
    """Bytes that a layer of each pattern keeps while it is recomputed: the last, whose turn comes when all is there."""
    last = dict(zip(module.config.layers, module.each_block(), strict=True))
    return [_layer(block, module, images, kept, device) for block in last.values()]


def layer_kinds(module: ScaleTransformer) -> list[list[int]]:
    """The numbers of the layers that are alike: of the same mixers, with stochastic depth or without."""
    kinds: dict[Any, list[int]] = {}
    for number, (text, block) in enumerate(zip(module.config.layers, module.each_block(), strict=True)):
        kinds.setdefault((text, block.drop_path is None), []).append(number)
    return list(kinds.values())


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
