"""What of a layer is kept for backward: all, linear products and attention, or its inputs; the rest is recomputed.

The numbers are the same to the bit: what is random in a layer is drawn again from the same state.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch._ops import OpOverload

Kept = Literal["none", "selective", "full"]  # of `runtime.checkpoint_activations`

# Dear to compute again. Inside a scan, a function with a backward of its own, nothing is kept: it keeps what it needs.
_DEAR = frozenset(
    f"aten::{name}"
    for name in (
        *("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
        *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    )
)
# flash-attn's, which it calls inside functions with a backward of their own: where gradients are off.
_FLASH = frozenset(("flash_attn::_flash_attn_forward", "flash_attn::_flash_attn_varlen_forward"))


def with_kept(kept: Kept, layer: Callable[..., Any], *args: Any) -> Any:
    """`layer(*args)`; where gradients are wanted it keeps for them what `kept` says.

    Args:
        kept: `none`: nothing is recomputed; `selective`: all but linear products and attention; `full`: everything.
        layer: a function of tensors, which draws random numbers from torch's own state alone.
    """
    if kept == "none" or not torch.is_grad_enabled():
        return layer(*args)
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    if kept == "full":
        return checkpoint(layer, *args, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(layer, *args, use_reentrant=False, context_fn=contexts)


def _policy(context: object, operator: OpOverload, *args: object, **kwargs: object) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    return CheckpointPolicy.MUST_SAVE if is_dear(operator) else CheckpointPolicy.PREFER_RECOMPUTE


def is_dear(operator: OpOverload) -> bool:
    """Whether `selective` keeps what an operator gives, called as it is just now."""
    name = operator._schema.name
    return name in _FLASH or (torch.is_grad_enabled() and name in _DEAR)
