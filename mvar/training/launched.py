"""How long a forward pass takes on a GPU at least, counted from what it launches: no GPU is asked, nothing is computed.

    seconds = sum over operators of the longest of: a launch; bytes read and written / bandwidth; FLOPs / rate

What runs in plain torch launches many small operators, and one that goes token by token a great many: that is seen
here. How well a kernel does its own work is not.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvar.config import RunConfig
from mvar.kernels.fake_gpu import fake_gpu
from mvar.training.cards import CARDS
from mvar.transformer import Block

LAUNCH_S = 5e-6  # of one operator, by the host: eager torch does no better
MADE_ONLY = frozenset(("empty", "empty_like", "new_empty", "empty_strided", "detach", "_unsafe_view", "lift_fresh"))


class Priced(TorchDispatchMode):
    """Adds up the seconds of all that is launched inside.

    Args:
        card: one of `CARDS`.
        tf32: whether matrix units do fp32 products.
    """

    def __init__(self, card: str, tf32: bool) -> None:
        from torch.utils.flop_counter import flop_registry  # here: it imports slowly

        super().__init__()
        self.seconds, self.launches = 0.0, 0
        self._flops_of = flop_registry
        found = CARDS[card]
        self._half, self._bandwidth = found.flops_per_s("bf16", tf32), found.bytes_per_s
        self._fp32 = found.flops_per_s("fp32", tf32)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or func.overloadpacket.__name__ in MADE_ONLY):
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            if made:  # others are questions
                self.launches += 1
                moved = sum(t.nbytes for t in (*given, *made)) / self._bandwidth
                self.seconds += max(LAUNCH_S, moved, self._product(func, args, kwargs, out))
        return out

    def _product(self, func: Any, args: Any, kwargs: Any, out: Any) -> float:
        formula = self._flops_of.get(func.overloadpacket)
        if formula is None:
            return 0.0
        is_fp32 = any(isinstance(t, Tensor) and t.dtype == torch.float32 for t in tree_leaves(out))
        return formula(*args, **(kwargs or {}), out_val=out) / (self._fp32 if is_fp32 else self._half)


def layer_seconds(config: RunConfig, layer: str, images: int, card: str) -> float:
    """Of a forward pass of one layer of a run's model over some images in training, at the run's precision.

    By the torch paths: what optional kernels launch cannot be counted, and takes less.
    """
    model, span = config.model, config.token_space.schedule.span()
    runtime = config.runtime.model_copy(update={"scan_backend": "torch", "attention_backend": "torch"})
    with torch.device("meta"):
        block = Block(model, layer, 0.0, runtime)
    with fake_gpu(config.train.precision):
        block.to_empty(device="cuda").train()
        x = torch.zeros(images, span.length, model.width, device="cuda")
        chunks = (1, 3 * block.num_branches, model.width) if model.shared_adaln else (model.width,)
        condition = torch.zeros(images, *chunks, device="cuda")
        with Priced(card, config.runtime.tf32) as priced:
            block(x, condition, span, None)
    return priced.seconds
