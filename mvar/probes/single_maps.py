"""What single mixers look at on one image: maps of attention, and the reach of mixers that have no map.

A map is given scale by scale, as it is made: for the n queries of a scale the weights `(n, V)` on the V tokens of that
scale and of the coarser ones; rows sum to 1. No map of all tokens by all tokens is held. Shapes: `L` tokens, `H` heads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvar.mixers.base import Mixer, chosen_in
from mvar.mixers.scale_attention import ScaleAttention
from mvar.probes.attention_mass import observing
from mvar.probes.reach import reach
from mvar.scales import ScaleSchedule
from mvar.transformer import ScaleTransformer

ATTENTION, REACH = "attention", "reach"
FEW_TOKENS = 128  # of more the reach costs too much along as many directions
DIRECTIONS, DIRECTIONS_OF_MANY = 8, 2
Blocks = Iterator[Tensor]  # (n, V) float32 on the CPU, one a query scale


@dataclass(frozen=True)
class Part:
    """A mixer of a layer."""

    layer: int
    mixer: str  # as the pattern has it
    num_heads: int  # 0: it has no maps
    module: Mixer

    @property
    def kind(self) -> str:
        """Whether its weights are those of attention, or shares of its reach."""
        return ATTENTION if self.num_heads else REACH

    def visible(self, schedule: ScaleSchedule) -> NDArray[np.bool_]:
        """Which tokens a token sees: `(L, L)`, `Mixer.visible`."""
        return self.module.visible(self.module.settings, schedule)

    def sees(self, schedule: ScaleSchedule) -> NDArray[np.int_]:
        """How many tokens of each scale a token sees: `(L, scales)`."""
        return np.add.reduceat(self.visible(schedule), schedule.offsets[:-1], axis=1, dtype=int)


def parts_of(model: ScaleTransformer) -> list[Part]:
    """The mixers of all layers, in order."""
    return [
        Part(number, text, model.config.num_heads if has_maps(mixer) else 0, mixer)
        for number, (layer, block) in enumerate(zip(model.config.layers, model.each_block(), strict=True))
        for text, mixer in zip(chosen_in(model.config, layer), block.mixers(), strict=True)
    ]


def has_maps(mixer: Mixer) -> bool:
    """Whether a mixer's weights can be looked at."""
    return isinstance(mixer, ScaleAttention) and mixer.has_maps


def each_map(
    model: ScaleTransformer,
    label: Tensor,
    inputs: Tensor,
    wanted: Mapping[int, Sequence[int | None]],
    take: Callable[[int, int | None, Blocks], None],
) -> None:
    """Make maps of one image under teacher forcing, one after the other.

    Args:
        model: left in the mode that it was in.
        label: class of the image.
        inputs: `(L - n_0, C)`, as the model's forward takes them.
        wanted: by the number of a part (`parts_of`) heads, None for their mean; of a part without maps None alone.
        take: is given part, head and the map, and has to use the map up before it returns.
    """
    parts, schedule = parts_of(model), model.schedule
    attending = [(n, m) for n in wanted if isinstance(m := parts[n].module, ScaleAttention) and parts[n].num_heads]
    kept: dict[int, Tensor] = {}

    def see(number: int, q: Tensor, k: Tensor) -> None:
        seen = _seen(parts[number], schedule)
        for head in wanted[number]:
            heads = slice(None) if head is None else slice(head, head + 1)
            take(number, head, _attention(q[0, heads], k[0, heads], schedule, seen))

    def keep(number: int, module: Any, arguments: tuple[Tensor, ...]) -> None:
        kept[number] = arguments[0][0].detach()

    with torch.no_grad(), ExitStack() as stack:
        for number in wanted:
            if not parts[number].num_heads:
                handle = parts[number].module.register_forward_pre_hook(partial(keep, number))
                stack.callback(handle.remove)
        stack.enter_context(observing(model, see, attending))
        device = model.pos_1LC.device
        model(label.reshape(1).to(device), inputs[None].to(device))
        stack.pop_all().close()
        for number, x in kept.items():
            take(number, None, _reach(parts[number].module, x, schedule))


def weights_of(q: Tensor, k: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention `(n, V)`, mean over heads, of queries `(H, n, head_dim)` to keys `(H, V, head_dim)` that are seen."""
    scores = q @ k.transpose(1, 2)
    if seen is not None:
        scores = scores.masked_fill(~seen.to(q.device), float("-inf"))
    return scores.softmax(-1).mean(0).cpu()


def _seen(part: Part, schedule: ScaleSchedule) -> Tensor | None:
    """Which tokens a token sees, `(L, L)`; None for all of its scale and the coarser ones."""
    visible = torch.from_numpy(part.visible(schedule))
    levels = torch.tensor(schedule.levels)
    return None if torch.equal(visible, levels[:, None] >= levels) else visible


def _attention(q: Tensor, k: Tensor, schedule: ScaleSchedule, seen: Tensor | None) -> Blocks:
    for step in schedule.steps():
        rows = slice(step.start, step.stop)
        yield weights_of(q[:, rows], k[:, : step.stop], None if seen is None else seen[rows, : step.stop])


def _reach(mixer: Mixer, x: Tensor, schedule: ScaleSchedule) -> Blocks:
    directions = DIRECTIONS if len(x) <= FEW_TOKENS else DIRECTIONS_OF_MANY
    for number, step in enumerate(schedule.steps()):
        found = reach(mixer, x[: step.stop], schedule.span(0, number + 1), range(step.start, step.stop), directions)
        total = found.sum(1, keepdim=True)
        yield (found / total.clamp_min(torch.finfo(found.dtype).tiny)).float().cpu()
