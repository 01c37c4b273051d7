"""One batch of images, step by step, in memory that is allocated once: the same code runs eagerly and in CUDA graphs.

Shapes: `B` batch, `L` tokens of all scales, `n` tokens of one scale, `V` codebook size, `C` code channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mvar.config import SampleConfig
from mvar.mixers.room import Room
from mvar.sampling.draws import ImageStreams, are_kept, draw, only_kept, smooth_probabilities
from mvar.sampling.guidance.contract import position
from mvar.sampling.methods import guidance_weights, kept_by
from mvar.transformer import BlockState, ScaleTransformer

if TYPE_CHECKING:
    from mvar.tokenizer.quantizer import ResidualQuantizer

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
OnLogits = Callable[[int, Tensor], None]


def guide(x: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: `(1 + t) cond - t uncond`, t the weight.

    The two factors add up to 1. So guiding what the affine head is given yields the same as guiding its logits, as the
    official code does, with half the head's work.

    Args:
        x: logits `(2B, n, V)` or the head's input `(2B, n, D)`, the conditional half first.
        weight: as the form of guidance has it for a scale (`mvar.sampling.guidance`).
    """
    conditional, unconditional = x.chunk(2)
    return torch.lerp(unconditional, conditional, 1 + weight)  # the same in one pass


class Rooms:
    """What all layers leave from scale to scale, each in its place (`mvar.mixers.room`).

    Args:
        model: the generator.
        batch: images that it runs, the half without a class included.
        dtype: of its activations.
    """

    def __init__(self, model: ScaleTransformer, batch: int, dtype: torch.dtype) -> None:
        self._rooms: list[tuple[Room, list[Room]]] = []
        for block in model.each_block():
            bytes_of_each = (
                m.state_bytes(m.config, m.settings, model.schedule, dtype.itemsize) for m in block.mixers()
            )
            self._rooms.append((Room(), [Room(batch * num_bytes) for num_bytes in bytes_of_each]))

    def keep(self, left: list[BlockState], given: list[BlockState]) -> list[BlockState]:
        """The states that a step left, given those that it began with, at the same addresses for every batch."""
        kept = []
        for (room, rooms), state, before in zip(self._rooms, left, given, strict=True):
            mixers = [r.keep(s, b) for r, s, b in zip(rooms, state.mixers, before.mixers, strict=True)]
            kept.append(BlockState(room.keep(state.modulation, before.modulation), mixers))
        return kept


class Drawing:
    """Images that are drawn: labels and random numbers in, tokens and latent out.

    Every step reads what the steps before it wrote, at the same addresses, and writes at the same addresses; nothing
    in it waits for the device, `more_smooth` aside. So steps can be recorded, and replayed for other labels.

    Args:
        model: the generator, as it is run.
        quantizer: of its tokenizer.
        batch: B.
        config: guidance, filters, precision.
        once: no other batch follows. States then stay where mixers made them, which saves a copy of each, and their
            memory is given back when the last scale has been through the model.
    """

    def __init__(
        self,
        model: ScaleTransformer,
        quantizer: "ResidualQuantizer",
        batch: int,
        config: SampleConfig,
        once: bool = False,
    ) -> None:
        self.model, self.quantizer, self.config = model, quantizer, config
        self.schedule = model.schedule
        steps, device = self.schedule.num_scales, model.pos_1LC.device
        self._strengths, self._filtered = guidance_weights(config, steps), kept_by(config, steps)
        self._guided = any(self._strengths)
        self._half = HALF.get(config.precision)
        side, codes = self.schedule.sides[-1], quantizer.embedding.weight.dtype
        shape = batch, self.schedule.num_tokens
        # what a batch begins with, side by side, so that one copy brings it: the bits of its numbers, and its labels
        size, rows = batch * shape[1], (2 if self._guided else 1) * batch
        self._begun = torch.full((size + rows,), model.space.num_classes, device=device)
        self._numbers = self._begun[:size].view(torch.float64).view(shape)
        self._conditions = self._begun[size:]  # without a class, but where labels are: all of guidance's second half
        self.tokens = torch.empty(shape, dtype=torch.long, device=device)
        self.latent = torch.empty(batch, model.space.code_channels, side, side, device=device, dtype=codes)
        self.sums = torch.zeros(steps + 1, device=device)  # of logits, and of the latent: finite where all are
        self.sound = torch.ones(steps, dtype=torch.bool, device=device)  # whether what was drawn is kept by the filter
        dtype = self._half or model.pos_1LC.dtype
        self._rooms = None if once else Rooms(model, rows, dtype)
        self._states = {0: model.prepared(rows, dtype)}  # scale -> what the coarser ones left
        self._streams: ImageStreams | None = None
        self._given: list[Tensor] = []
        self._unseen: list[Tensor] = []  # inputs of scales that the model has not seen yet

    def begin(self, labels: Tensor, streams: ImageStreams, given: Sequence[Tensor] = ()) -> None:
        """Another batch: what it is drawn from is copied to the device, all at once.

        Args:
            labels: `(B,)`; best on the host, where the numbers are: from the device they would be fetched.
            streams: one an image.
            given: tokens `(B, n)` of the coarsest scales, where they are not drawn.
        """
        self._streams, self._given = streams, list(given)
        self._unseen.clear()
        if self.config.more_smooth:
            self._conditions[: len(labels)].copy_(labels)
            return
        numbers = streams.uniform(self.schedule.num_tokens).view(torch.long).flatten()
        host = torch.cat((numbers, labels.to(numbers)))
        self._begun[: len(host)].copy_(host)

    def step(self, scale: int, on_logits: OnLogits | None = None) -> None:
        """Draw a scale, and add its codes to the latent.

        Args:
            scale: the number; all coarser ones have been drawn.
            on_logits: called with its number and its guided, unfiltered logits `(B, n, V)`.
        """
        span = self.schedule.span(scale, scale + 1)
        part, smooth = slice(span.start, span.stop), None
        if self.config.more_smooth:  # of a given scale too: the others keep theirs
            assert self._streams is not None
            self._numbers[:, part] = self._streams.uniform(span.length)
        if scale == 0:
            self.latent.zero_()
        self._unseen.append(self._input(scale))
        if scale < len(self._given):
            self.tokens[:, part] = self._given[scale]
        else:
            smooth = self._draw(scale, part, on_logits)
        codes = self.quantizer.embed(self.tokens[:, part]) if smooth is None else smooth
        self.latent.copy_(self.quantizer.add(self.latent, codes.to(self.latent.dtype), scale))
        if span.is_last:
            self.sums[-1] = self.latent.sum(dtype=torch.float32)

    @contextmanager
    def casting(self) -> Iterator[None]:
        """While a batch is drawn: weights are cast to half precision once in it, where that is asked for."""
        if self._half is None:
            yield
            return
        # what autocast has cast lives as long as the outermost of its contexts, switched on or off
        with torch.autocast(self.latent.device.type, enabled=False):
            yield

    def _draw(self, scale: int, part: slice, on_logits: OnLogits | None) -> Tensor | None:
        """Tokens of a scale; returns codes `(B, n, C)` where they are not those of the tokens."""
        logits = self._logits(scale)
        self.sums[scale] = logits.sum(dtype=torch.float32)
        if on_logits:
            on_logits(scale, logits)
        kept = self._filtered(scale, logits)
        tokens = draw(logits, self._numbers[:, part], kept)
        self.tokens[:, part] = tokens
        self.sound[scale] = are_kept(logits, tokens, kept)
        if not self.config.more_smooth:
            return None
        assert self._streams is not None
        ratio = position(scale, self.schedule.num_scales)
        return _smooth_codes(only_kept(logits, kept), self._streams, self.quantizer.embedding.weight, ratio)

    def _logits(self, scale: int) -> Tensor:
        """Guided logits `(B, n, V)` of a scale; scales that were given are run with the first that is drawn."""
        inputs, first = torch.cat(self._unseen, 1), scale + 1 - len(self._unseen)
        self._unseen.clear()
        span, state = self.schedule.span(first, scale + 1), self._states[first]
        guidance = partial(guide, weight=self._strengths[scale]) if self._guided else None
        with torch.autocast(inputs.device.type, self._half) if self._half else nullcontext():
            logits, left = self.model(self._conditions, inputs, span, state, before_head=guidance)
        if self._rooms is None:
            self._states = {scale + 1: left}
        elif not span.is_last:
            self._states[scale + 1] = self._rooms.keep(left, state)
        return logits[:, -span.schedule.lengths[scale] :]

    def _input(self, scale: int) -> Tensor:
        """What the model is given of a scale, `(B, n, C)`, or `(2B, n, C)` with guidance; of the first nothing."""
        if scale == 0:
            return self.latent.new_empty(len(self._conditions), 0, self.latent.shape[1])
        inputs = self.quantizer.next_input(self.latent, scale)
        return torch.cat((inputs, inputs)) if self._guided else inputs


def _smooth_codes(logits: Tensor, streams: ImageStreams, codebook: Tensor, ratio: float) -> Tensor:
    """`more_smooth`: mixtures `(B, n, C)` of the codes that are left of logits `(B, n, V)`."""
    noise = streams.gumbel(*logits.shape[1:]).to(logits)
    weights = smooth_probabilities(logits, noise, ratio)
    return weights @ codebook.to(weights.dtype)
