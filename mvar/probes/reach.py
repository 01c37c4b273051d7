"""Reach: how strongly the output of a token depends on the input of every token, through one mixer.

For mixers that have no attention map. Shapes: `L` tokens of a span, `D` width, `n` tokens whose output is looked at.
"""

import torch
from torch import Tensor

from mvar.mixers.base import Mixer
from mvar.scales import Span

GROUP_CELLS = {"cpu": 1 << 20, "cuda": 1 << 24}  # numbers of the copies of the input that are held at a time


def reach(
    mixer: Mixer, x: Tensor, span: Span, outputs: range | None = None, directions: int = 8, seed: int = 0
) -> Tensor:
    """Frobenius norms of the blocks of a mixer's Jacobian, `||d y_i / d x_j||`: `(n, L)`, row i the output of token i.

    The norm is estimated by the gradients of the output along random directions at right angles to each other: its
    square is right in expectation, and exact (up to rounding) with D of them. Rows do not depend on which other rows
    are asked for.

    Args:
        mixer: what is looked at; its weights are left alone.
        x: `(L, D)`, its input on one image.
        span: the scales that `x` holds, from the first one on.
        outputs: tokens of the span whose output is looked at; None: all.
        directions: 1 to D; more are as D.
        seed: of the directions.
    """
    length, width = x.shape
    rows = torch.arange(length, device=x.device)[slice(None) if outputs is None else slice(outputs.start, outputs.stop)]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(width, min(directions, width), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q.T.to(x)  # (directions, D), orthonormal
    copies = max(1, GROUP_CELLS.get(x.device.type, 1 << 22) // (length * width))  # of the input, at a time
    together = min(len(basis), copies)  # directions
    squares = x.new_zeros(len(rows), length)
    with torch.inference_mode(False), torch.enable_grad():
        for group in torch.arange(len(rows)).split(max(1, copies // together)):
            several = x.clone().expand(len(group) * together, -1, -1).contiguous().requires_grad_()
            output = mixer(several, span)[0].unflatten(0, (len(group), together))
            seen = output[torch.arange(len(group)), :, rows[group].clone()]  # (group, together, D)
            parts = basis.split(together)
            for number, part in enumerate(parts):
                along = (seen[:, : len(part)] * part).sum()
                (gradient,) = torch.autograd.grad(along, several, retain_graph=number + 1 < len(parts))
                squares[group] += gradient.square().sum(-1).unflatten(0, (len(group), together)).sum(1).detach()
    return (squares * (width / len(basis))).sqrt()
