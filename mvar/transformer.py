"""The VAR backbone: embeddings, adaptively normalised blocks, head. Of the mixers it knows only their contract.

Parameter names are those of the official VAR and M-VAR code, so that published checkpoints load by name.
Shapes: `B` batch, `L` tokens of a span, `D` width, `V` codebook size, `C` code channels.
"""

import math
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar.config import ModelConfig, RuntimeConfig, TokenSpace
from mvar.kernels.compiling import compiled
from mvar.kernels.gelu import gelu
from mvar.kernels.recompute import Kept, with_kept
from mvar.memory import release
from mvar.mixers.base import Mixer, chosen_in
from mvar.pattern import mixer_name, parse_branches
from mvar.scales import Span

NORM_EPS = 1e-6


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Adaptive LayerNorm: `norm(x) * (1 + scale) + shift`, without affine parameters of its own."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


class FeedForward(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, L, D)` to `(B, L, D)`."""
        return self.fc2(gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth (torchvision's, mode "row"): in training each image's branch is dropped with probability `rate`.

    The numbers are drawn for the whole batch of a step. `batch_part`, the first row and the size of that batch, is set
    by the training loop: so neither the number of processes nor that of micro-batches changes which branches drop.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.batch_part: tuple[int, int] | None = None  # None: what comes is the whole batch

    def forward(self, x: Tensor) -> Tensor:
        """`(B, L, D)` to `(B, L, D)`."""
        factors = self.draw(x)
        return x if factors is None else x * factors

    def draw(self, x: Tensor) -> Tensor | None:
        """What a branch of each image of `x` `(B, L, D)` is multiplied by, `(B, 1, 1)`; None outside of training."""
        if not self.training:
            return None
        first, total = self.batch_part or (0, len(x))
        kept = torch.empty(total, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return kept.div_(1 - self.rate)[first : first + len(x)]


class BlockState(NamedTuple):
    """What a layer carries from the coarser scales to the finer ones."""

    modulation: Tensor | None  # (B, 1, 3, chunks, D), gates, scales, shifts: the class alone decides; None: not yet
    mixers: list[Any]  # the state of every mixer, in order


class Block(nn.Module):
    """One layer: residual branches of mixers, then the feed-forward, each with gate, scale and shift.

    The mixers of one branch (`intra|mamba`) see the same tokens, and their outputs are summed. The modulation of a
    layer with k branches is 3k chunks of D: all gates, all scales, all shifts, each in branch
    order. That is VAR's six (attention, feed-forward) and M-VAR's nine (attention, Mamba, feed-forward).
    """

    def __init__(self, config: ModelConfig, layer: str, drop_path: float, runtime: RuntimeConfig) -> None:
        super().__init__()
        self.config, self.runtime = config, runtime
        self.mixer_names: list[str] = []
        for text, chosen in chosen_in(config, layer).items():
            key = chosen.cls.key
            attribute = key if key not in self.mixer_names else f"{key}_{mixer_name(text)}"
            self.add_module(attribute, chosen.build(config, runtime))
            self.mixer_names.append(attribute)
        self.ffn = FeedForward(config.width, round(config.width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else None
        self.branches = [len(branch) for branch in parse_branches(layer)]  # mixers of each
        self.num_branches = len(self.branches) + 1
        chunks = 3 * self.num_branches
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.empty(1, 1, chunks, config.width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(config.width, chunks * config.width))

    def mixers(self) -> list[Mixer]:
        """The mixers, in order."""
        return [cast("Mixer", self.get_submodule(name)) for name in self.mixer_names]

    def forward(self, x: Tensor, condition: Tensor, span: Span, state: BlockState | None) -> tuple[Tensor, BlockState]:
        """Run the layer on a span.

        Args:
            x: `(B, L, D)`.
            condition: `(B, D)`; with shared AdaLN the shared modulation `(B, 1, chunks, D)`. Not read where a coarser
                scale has left a state.
            span: the scales that `x` holds.
            state: as the coarser scales left it; None where there are none.
        """
        # drawn here: compiled, the layer would draw other numbers, and each rate be a constant of its own
        drops = [self.drop_path.draw(x) if self.drop_path else None for _ in range(self.num_branches)]
        if self.runtime.compile and state is None and torch.is_grad_enabled():
            return compiled(Block.run_kept)(self, x, condition, span, drops)
        return self.run(x, condition, span, drops, state)

    def run_kept(
        self, x: Tensor, condition: Tensor, span: Span, drops: list[Tensor | None]
    ) -> tuple[Tensor, BlockState]:
        """`run` for a compiler, which must see what `selective` keeps; the model sees to `full`."""
        kept = "selective" if self.runtime.kept == "selective" else "none"
        return with_kept(kept, self.run, x, condition, span, drops)

    def run(
        self, x: Tensor, condition: Tensor, span: Span, drops: list[Tensor | None], state: BlockState | None = None
    ) -> tuple[Tensor, BlockState]:
        """The layer, given what stochastic depth multiplies each branch by; without random numbers of its own."""
        state = state or BlockState(None, [None] * len(self.mixer_names))
        modulation = self._modulation(condition) if state.modulation is None else state.modulation
        gates, scales, shifts = (part.unbind(2) for part in modulation.unbind(2))
        new_states = []
        mixers = zip(self.mixers(), state.mixers, strict=True)
        for i, count in enumerate(self.branches):
            h = modulate(x, scales[i], shifts[i])
            outputs, left = zip(*(mixer(h, span, before) for mixer, before in islice(mixers, count)), strict=True)
            x = self._add(x, reduce(torch.add, outputs), gates[i], drops[i])
            new_states += left
        y = self.ffn(modulate(x, scales[-1], shifts[-1]))
        return self._add(x, y, gates[-1], drops[-1]), BlockState(modulation, new_states)

    def _add(self, x: Tensor, branch: Tensor, gate: Tensor, drop: Tensor | None) -> Tensor:
        if self.drop_path is None:
            return torch.addcmul(x, branch, gate)
        branch = branch * gate
        return x + (branch if drop is None else branch * drop.to(branch.dtype))

    def _modulation(self, condition: Tensor) -> Tensor:
        branches = self.num_branches
        if not self.config.shared_adaln:
            return self.ada_lin(condition).view(condition.shape[0], 1, 3, branches, -1)
        # A layer with fewer branches than the widest one takes the first chunks, and the last for its feed-forward
        shared = condition.view(condition.shape[0], 1, 3, -1, condition.shape[-1])
        shared = torch.cat((shared[:, :, :, : branches - 1], shared[:, :, :, -1:]), dim=3)
        return shared + self.ada_gss.view(1, 1, 3, branches, -1)

    def init_weights(self, std: float) -> None:
        """Initialise as the official code does: gates small, output projections shrunk by `1 / sqrt(2 depth)`.

        With `init="official"` only the first two gates of a layer get `init_adaln_gamma`: a quirk of M-VAR, whose
        third gate (the feed-forward's) keeps the larger `init_adaln`. With `init="fixed"` all gates get it.
        """
        config = self.config
        for mixer in self.mixers():
            mixer.init_weights(std)
        _init_linear(self.ffn.fc1, std)
        _init_linear(self.ffn.fc2, std)
        small = 2 if config.init == "official" else self.num_branches
        with torch.no_grad():
            self.ffn.fc2.weight.div_(math.sqrt(2 * config.depth))
            if config.shared_adaln:
                self.ada_gss.normal_(std=config.width**-0.5)
                gains = self.ada_gss[0, 0]
            else:
                linear = _linear_of(self.ada_lin)
                _init_linear(linear, std)
                gains = linear.weight.view(3 * self.num_branches, config.width, config.width)
            gains[:small] *= config.init_adaln_gamma
            gains[small:] *= config.init_adaln


class AdaptiveHeadNorm(nn.Module):
    """The adaptive norm before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`(B, L, D)`, modulated by the class embedding `(B, D)`."""
        scale, shift = self.ada_lin(condition).view(condition.shape[0], 1, 2, -1).unbind(2)
        return modulate(x, scale, shift)


class ScaleTransformer(nn.Module):
    """Next-scale prediction: logits of every token of a scale, given the coarser scales and a class.

    The whole image without a state is teacher forcing; scale after scale with the state is sampling: one code path.
    """

    levels: Tensor  # (L,), the scale of every token

    def __init__(self, config: ModelConfig, space: TokenSpace, runtime: RuntimeConfig = RuntimeConfig()) -> None:
        super().__init__()
        self.config, self.space = config, space
        kept = runtime.kept
        # compiled layers see to `selective` themselves: `Block.run_kept`
        self.kept: Kept = "none" if runtime.compile and kept == "selective" else kept
        self.schedule = schedule = space.schedule
        width = config.width
        self.word_embed = nn.Linear(space.code_channels, width)
        self.class_emb = nn.Embedding(space.num_classes + 1, width)  # the last row is "no class"
        self.lvl_embed = nn.Embedding(schedule.num_scales, width)
        self.pos_start = nn.Parameter(torch.empty(1, schedule.lengths[0], width))
        self.pos_1LC = nn.Parameter(torch.empty(1, schedule.num_tokens, width))
        self.register_buffer("levels", torch.tensor(schedule.levels), persistent=False)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        layers = zip(config.layers, rates, strict=True)
        self.blocks = nn.ModuleList(Block(config, layer, rate, runtime) for layer, rate in layers)
        if config.shared_adaln:
            chunks = 3 * max(block.num_branches for block in self.each_block())
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, chunks * width))
        self.head_nm = AdaptiveHeadNorm(width)
        self.head = nn.Linear(width, space.vocab_size)
        self.init_weights()

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        space: TokenSpace,
        runtime: RuntimeConfig = RuntimeConfig(),
        released: bool = False,
    ) -> "ScaleTransformer":
        """A model whose parameters hold no values yet, for weights to be loaded: drawing billions takes a minute.

        Args:
            config, space, runtime: of the model.
            released: there is no memory for values either, until `memory.provide`.
        """

        def room(tensor: Tensor) -> Tensor:
            made = torch.empty_like(tensor, device="cpu")
            return release(made) if released and isinstance(tensor, nn.Parameter) else made

        with torch.device("meta"):
            model = cls(config, space, runtime)
        model._apply(room)
        model.levels.copy_(torch.tensor(model.schedule.levels))
        return model

    def each_block(self) -> Iterator[Block]:
        """The layers, in order."""
        return cast("Iterator[Block]", iter(self.blocks))

    def forward(
        self,
        labels: Tensor,
        inputs: Tensor,
        span: Span | None = None,
        state: list[BlockState] | None = None,
        before_head: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[BlockState]]:
        """Logits of a span's tokens.

        Args:
            labels: `(B,)` class numbers; `num_classes` is "no class". With a state those that it was made with.
            inputs: `(B, L', C)`, the tokenizer's input of every scale of the span but scale 0, which starts from the
                class alone.
            span: the scales; None for the whole image.
            state: what the call for the coarser scales returned; before the first one None, or what `prepared` gave.
            before_head: maps what the head is given, `(B, L, D)`, first; guidance joins the two halves of a batch so.

        Returns:
            Logits `(B, L, V)` in fp32 (fp64 for an fp64 model), and the state for the scales that follow.
        """
        span = span or self.schedule.span()
        if state is None and span.first > 0:
            raise ValueError(f"span starts at scale {span.first}; the state of the coarser scales is missing")
        condition = self.class_emb(labels)
        x = self.embed(condition, inputs, span)
        modulation = condition
        if self.config.shared_adaln and span.first == 0:
            modulation = self.shared_ada_lin(condition).view(len(labels), 1, -1, self.config.width)
        new_state = []
        for block, block_state in zip(self.blocks, state or [None] * len(self.blocks), strict=True):
            x, block_state = with_kept(self.kept, block, x, modulation, span, block_state)
            new_state.append(block_state)
        return self.logits(x, condition, before_head), new_state

    def prepared(self, batch: int, dtype: torch.dtype) -> list[BlockState]:
        """States before the first scale, with memory for what mixers fill in place.

        Args:
            batch: images, the half without a class included.
            dtype: of the activations.
        """
        where = (batch, self.schedule, dtype, self.pos_1LC.device)
        return [BlockState(None, [mixer.prepared(*where) for mixer in block.mixers()]) for block in self.each_block()]

    def embed(self, condition: Tensor, inputs: Tensor, span: Span) -> Tensor:
        """Token embeddings `(B, L, D)` of a span: class or code features, plus level and position."""
        x = self.word_embed(inputs.to(self.word_embed.weight.dtype))
        if span.first == 0:
            x = torch.cat((condition[:, None] + self.pos_start, x), dim=1)
        if x.shape[1] != span.length:
            raise ValueError(f"inputs: {x.shape[1]} tokens; the span holds {span.length}")
        tokens = slice(span.start, span.stop)
        return x + (self.lvl_embed(self.levels[tokens]) + self.pos_1LC[0, tokens])

    def logits(self, x: Tensor, condition: Tensor, before_head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Logits `(B, L, V)`, in fp32 at least; under autocast the head stays in its own precision (official code)."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = self.head.weight.dtype
            features = self.head_nm(x.to(dtype), condition.to(dtype))
            logits = self.head(before_head(features) if before_head else features)
        return logits.to(torch.promote_types(dtype, torch.float32))

    def init_weights(self) -> None:
        """Initialise as the official code does (`ModelConfig.init`), from torch's global random numbers."""
        config = self.config
        std = math.sqrt(1 / config.width / 3)
        for weight in (self.pos_start, self.pos_1LC, self.lvl_embed.weight, self.class_emb.weight):
            nn.init.trunc_normal_(weight, std=std)
        modulation = _linear_of(self.head_nm.ada_lin)
        for linear in (self.word_embed, self.head, modulation):
            _init_linear(linear, std)
        if config.shared_adaln:
            _init_linear(_linear_of(self.shared_ada_lin), std)
        with torch.no_grad():
            self.head.weight.mul_(config.init_head)
            modulation.weight.mul_(config.init_adaln)
        for block in self.each_block():
            block.init_weights(std)


def _linear_of(modulation: nn.Sequential) -> nn.Linear:
    """The linear layer of a modulation, which comes after its SiLU."""
    linear = modulation[1]
    assert isinstance(linear, nn.Linear)
    return linear


def _init_linear(linear: nn.Linear, std: float) -> None:
    nn.init.trunc_normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
