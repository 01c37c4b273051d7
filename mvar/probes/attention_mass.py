"""Where attention goes: the share of its mass inside a token's own scale and on every coarser one, and its entropy.

The mass on a block of keys is a difference of log-sum-exps, `exp(lse_block - lse)`, so scores are needed a tile at a
time and no L x L map is ever held (paper, Table 1). Shapes: `B` images, `L` tokens, `H` heads, `S` scales, `N` layers
with global attention. A row of statistics is `(N, H, S, S + 1)`: for queries of a scale the mass on every scale's keys,
then the entropy in nats, both averaged over the queries.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mvar.errors import UserError
from mvar.mixers.global_attention import GlobalAttention
from mvar.mixers.scale_attention import ScaleAttention
from mvar.probes.cut_text import Cut
from mvar.probes.interval import t_factor
from mvar.progress import Progress
from mvar.scales import ScaleSchedule
from mvar.transformer import ScaleTransformer

SCHEMA_VERSION = 2
TILE_CELLS = {"cpu": 1 << 18, "cuda": 1 << 24}  # scores held at a time: what fits a core's cache, or fills a GPU


def scale_attention(
    q: Tensor, k: Tensor, schedule: ScaleSchedule, tile_cells: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mass of every query on every scale's keys, and entropy, under block-causal attention.

    Args:
        q, k: `(B, H, L, head_dim)`, scaled so that `softmax(q k^T)` is the attention map.
        schedule: the scales of the L tokens.
        tile_cells: scores that are held at a time (at least one query's); None: by device.

    Returns:
        Mass `(B, H, L, S)`, non-negative; rows sum to 1 and are 0 for scales finer than the query's. Entropy
        `(B, H, L)` in nats.
    """
    cells = tile_cells or TILE_CELLS.get(q.device.type, 1 << 22)
    heads = q.shape[1]
    mass = q.new_zeros(*q.shape[:3], schedule.num_scales).flatten(0, 1)
    entropy = q.new_empty(q.shape[:3]).flatten(0, 1)
    q, k = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2).contiguous()  # rows: images times heads
    for scale, step in enumerate(schedule.steps()):
        lengths = schedule.lengths[: scale + 1]
        num_rows = max(1, min(len(q), cells // (step.stop * min(step.length, 64))))  # 64: enough for a quick product
        num_queries = max(1, min(step.length, cells // (step.stop * num_rows)))
        for row in range(0, len(q), num_rows):
            rows, keys = slice(row, row + num_rows), k[row : row + num_rows, :, : step.stop]
            for start in range(step.start, step.stop, num_queries):
                queries = slice(start, min(start + num_queries, step.stop))
                score = torch.bmm(q[rows, queries], keys)
                score.sub_(score.amax(-1, keepdim=True))
                weight = score.exp()
                parts = torch.cat([w.sum(-1, keepdim=True) for w in weight.split(lengths, -1)], -1)
                total = parts.sum(-1, keepdim=True)
                mass[rows, queries, : scale + 1] = parts / total
                # entropy = log-sum-exp minus the expected score
                expected = score.mul_(weight).sum(-1, keepdim=True) / total
                entropy[rows, queries] = (total.log() - expected).squeeze(-1)
    images = -1, heads
    return mass.unflatten(0, images), entropy.unflatten(0, images)


def global_layers(model: ScaleTransformer) -> list[tuple[int, GlobalAttention]]:
    """Number and mixer of every layer with global attention; a model without one is a `UserError`."""
    mixers = [(number, mixer) for number, block in enumerate(model.each_block()) for mixer in block.mixers()]
    layers = [(number, mixer) for number, mixer in mixers if isinstance(mixer, GlobalAttention)]
    if not layers:
        raise UserError(f"model.pattern: {model.config.pattern!r} has no global layer; attention mass needs one")
    return layers


@contextmanager
def observing(
    model: ScaleTransformer,
    see: Callable[[int, Tensor, Tensor], None],
    mixers: Sequence[tuple[int, ScaleAttention]] | None = None,
) -> Iterator[None]:
    """Inside the block, `see(i, q, k)` gets the queries and keys `(B, H, L, head_dim)` that mixer i computes.

    The model is in evaluation mode there, and afterwards in the mode that it was in.

    Args:
        model: whose mixers they are.
        see: what is done with queries and keys.
        mixers: numbers and mixers; None: the global ones, by the number of their layer.
    """
    layers, was_training = global_layers(model) if mixers is None else mixers, model.training
    for number, mixer in layers:
        mixer.project = partial(_project, mixer.project, see, number)  # the instance's, in front of the class's
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for _, mixer in layers:
            del mixer.project


def _project(
    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    see: Callable[[int, Tensor, Tensor], None],
    number: int,
    x: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = project(x)
    see(number, *(t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k)))
    return q, k, v


@torch.inference_mode()
def attention_rows(model: ScaleTransformer, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """Statistics of single images under teacher forcing: for each batch float64 `(B, N, H, S, S + 1)`, on the CPU.

    Args:
        model: a backbone with at least one layer that has a `global` mixer; left in the mode it was in.
        batches: `(labels (B,), inputs (B, L - n_0, C))`, as the model's forward takes them.

    Raises:
        UserError: a model without global attention.
    """
    lengths = model.schedule.lengths
    found: list[Tensor] = []

    def see(number: int, q: Tensor, k: Tensor) -> None:
        mass, entropy = scale_attention(q, k, model.schedule)
        by_query = torch.cat((mass, entropy[..., None]), -1)
        found.append(torch.stack([part.double().mean(2) for part in by_query.split(lengths, 2)], 2).cpu())

    for labels, inputs in batches:
        found.clear()
        with observing(model, see):
            model(labels, inputs)
        yield torch.stack(found, 1)


@dataclass(frozen=True)
class AttentionStats:
    """Attention by layer, head, query scale and key scale: mean and standard deviation over images, in float64.

    All are means over the queries of a scale, or over all L queries where no query scale is given. Deviations are over
    images (0 for a single one); `half_width` makes confidence intervals of them.
    """

    layers: tuple[int, ...]  # the numbers of the N layers in the model
    sides: tuple[int, ...]
    num_images: int
    mean: Tensor  # mass, (N, H, S, S)
    sd: Tensor
    entropy: Tensor  # nats, (N, H, S)
    entropy_sd: Tensor
    matrix_sd: Tensor  # (N, S, S), of the mean over heads
    intra_sd: Tensor  # (N,), of a layer's intra share
    layer_entropy_sd: Tensor  # (N,), of a layer's mean entropy
    share_sd: float  # of the model's intra share

    @property
    def matrix(self) -> Tensor:
        """`(N, S, S)`: mass that queries of a scale (row) put on keys of a scale (column); rows sum to 1."""
        return self.mean.mean(1)

    @property
    def key_shares(self) -> Tensor:
        """`(N, S)`: mass on the keys of a scale, mean over heads and all queries; rows sum to 1."""
        return _over_queries(self.matrix.transpose(1, 2), self.sides)

    @property
    def intra_per_scale(self) -> Tensor:
        """`(N, S)`: mass on the own scale, by query scale."""
        return self.matrix.diagonal(dim1=1, dim2=2)

    @property
    def intra_per_head(self) -> Tensor:
        """`(N, H)`: mass on the own scale, every query counting the same."""
        return _over_queries(self.mean.diagonal(dim1=2, dim2=3), self.sides)

    @property
    def intra(self) -> Tensor:
        """`(N,)`: mass on the own scale, mean over heads and all L queries."""
        return self.intra_per_head.mean(1)

    @property
    def intra_without_first_scale(self) -> Tensor:
        """`(N,)`: the same without the first scale, whose queries have nothing else to look at."""
        return _over_queries(self.intra_per_scale[:, 1:], self.sides[1:])

    @property
    def share(self) -> float:
        """Intra share of the model: the mean over its global layers. Table 1's score half; inter is 1 minus it."""
        return float(self.intra.mean())

    def under(self, cut: Cut) -> tuple[float, float]:
        """Mass on the keys that a cut takes away, and entropy in nats, of the queries, heads and layers that it is in.

        Means; NaN of a cut that is in none of these layers.

        Raises:
            KeyError: it cuts no keys.
        """
        layers = [number for number, layer in enumerate(self.layers) if not cut.layers or layer in cut.layers]
        mass, entropy = ((v[layers][:, cut.heads] if cut.heads else v[layers]) for v in (self.mean, self.entropy))
        key, query = torch.arange(len(self.sides)), torch.arange(len(self.sides))[:, None]
        taken = {"own": key == query, "coarser": key < query, "scale": key == cut.scale, "all": key <= query}
        by_query = torch.stack([(mass * taken[cut.target]).sum(-1), entropy])
        found = _over_queries(by_query, self.sides) if cut.queries is None else by_query[..., cut.queries]
        share, nats = found.mean((1, 2)).tolist()
        return share, nats

    @property
    def scale_entropy(self) -> Tensor:
        """`(N, S)`: entropy in nats by query scale, mean over heads; of the queries of a row of `matrix`."""
        return self.entropy.mean(1)

    @property
    def head_entropy(self) -> Tensor:
        """`(N, H)`: entropy in nats, mean over all L queries."""
        return _over_queries(self.entropy, self.sides)

    @property
    def layer_entropy(self) -> Tensor:
        """`(N,)`: entropy in nats, mean over heads and all L queries."""
        return self.head_entropy.mean(1)

    @property
    def relative_entropy(self) -> Tensor:
        """`(N, H, S)`: entropy over that of uniform attention to all visible keys; NaN where one key is visible."""
        span = ScaleSchedule(self.sides).span()
        uniform = torch.tensor([span.visible(k) for k in span.scales], dtype=torch.float64).log()
        return self.entropy / uniform  # 0 / 0 for a first scale of one token

    @property
    def layer_relative_entropy(self) -> Tensor:
        """`(N,)`: mean of `relative_entropy` over heads and the queries that see more than one key."""
        first = int(self.sides[0] == 1)
        return _over_queries(self.relative_entropy[..., first:], self.sides[first:]).mean(1)

    def half_width(self, sd: Tensor | float) -> Tensor:
        """Half of the two-sided 95 % t interval of a mean over the images, from a deviation; NaN for one image."""
        return torch.as_tensor(sd, dtype=torch.float64) * t_factor(self.num_images)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: v.tolist() if isinstance(v, Tensor) else v for name, v in values.items()}
        return {"schema_version": SCHEMA_VERSION, "share": self.share, **plain}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "AttentionStats":
        """Read what `to_json` wrote; another schema version or a missing field is a `UserError`."""
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(f"attention.json: schema_version {version!r}; this version reads {SCHEMA_VERSION}")
        kinds = {"layers": tuple, "sides": tuple, "num_images": int, "share_sd": float}
        tensor = partial(torch.tensor, dtype=torch.float64)
        try:
            return cls(**{field.name: kinds.get(field.name, tensor)(values[field.name]) for field in fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"attention.json: incomplete ({error!r}); delete it and it is measured again") from None


class _Running:
    """Mean and variance of a stream of batches, merged pairwise (Chan et al.), in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Add a batch; the first dimension runs over images."""
        count, mean = len(values), values.mean(0)
        squares = (values - mean).square().sum(0)
        total, delta = self.count + count, mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.count = total

    @property
    def sd(self) -> Tensor:
        """Sample standard deviation; zeros for a single image."""
        return (self.squares / max(self.count - 1, 1)).sqrt()


def summarise(rows: Iterable[Tensor], layers: tuple[int, ...], sides: tuple[int, ...]) -> AttentionStats:
    """Means and deviations of a stream of rows, `(B, N, H, S, S + 1)` each, one batch in memory at a time.

    Raises:
        UserError: no rows.
    """
    running = {name: _Running() for name in ("mean", "entropy", "matrix", "intra", "layer_entropy", "share")}
    for batch in rows:
        mass, entropy = batch[..., :-1], batch[..., -1]
        intra = _over_queries(mass.diagonal(dim1=3, dim2=4), sides).mean(2)
        views = {"mean": mass, "entropy": entropy, "matrix": mass.mean(2), "intra": intra, "share": intra.mean(1)}
        views["layer_entropy"] = _over_queries(entropy, sides).mean(2)
        for name, values in views.items():
            running[name].add(values)
    if not running["mean"].count:
        raise UserError("attention: no images to measure on; allowed: at least one")
    deviations = {f"{name}_sd": running[name].sd for name in ("entropy", "matrix", "intra", "layer_entropy")}
    return AttentionStats(
        layers,
        sides,
        running["mean"].count,
        running["mean"].mean,
        running["mean"].sd,
        running["entropy"].mean,
        share_sd=float(running["share"].sd),
        **deviations,
    )


def attention_stats(
    model: ScaleTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Progress | None = None,
    total: int = 0,
) -> AttentionStats:
    """Attention statistics of a model's global layers under teacher forcing, streamed over batches of images.

    Args:
        model, batches: as `attention_rows` takes them.
        progress: called with (images done, `total`).
        total: images in all, for `progress`.

    Raises:
        UserError: a model without global attention, or no images.
    """

    def counted() -> Iterator[Tensor]:
        done = 0
        for rows in attention_rows(model, batches):
            done += len(rows)
            yield rows
            if progress:
                progress(done, total)

    layers = tuple(number for number, _ in global_layers(model))
    return summarise(counted(), layers, model.schedule.sides)


def _over_queries(by_scale: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Mean over queries of what is given by query scale, `(..., S)`: a scale weighs as many as it has tokens."""
    lengths = torch.tensor(ScaleSchedule(sides).lengths, dtype=torch.float64)
    return (by_scale * lengths).sum(-1) / lengths.sum()


def uniform_entropy(schedule: ScaleSchedule) -> float:
    """Entropy in nats of attention that is even over all keys that a query may see, mean over all L queries."""
    span = schedule.span()
    return sum(n * math.log(span.visible(k)) for k, n in enumerate(schedule.lengths)) / schedule.num_tokens


def uniform_share(schedule: ScaleSchedule) -> float:
    """Intra-scale share if every query attended evenly to all keys that it may see: the yardstick of the score."""
    span = schedule.span()
    return sum(n * n / span.visible(k) for k, n in enumerate(schedule.lengths)) / schedule.num_tokens
