"""Where attention goes: the share of its mass inside a token's own scale and on every coarser one (paper, Table 1).

Block-causal attention over values that merely say which scale a key belongs to *is* that share: with `E[j, s] = 1`
where key j lies in scale s, `softmax(q k^T) E` holds the mass on every scale. Fused attention kernels compute it
without an L x L map. Shapes: `B` batch, `L` tokens, `H` heads, `S` scales, `N` layers with global attention.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments import stages
from experiments.pipeline import load_generator
from experiments.store import RunDirectory, Store
from mvar.errors import UserError
from mvar.evaluation.images import spread_indices
from mvar.files import file_digest, read_json, write_json
from mvar.mixers.attention import GlobalAttention
from mvar.scales import ScaleSchedule
from mvar.transformer import ScaleTransformer

SCHEMA_VERSION = 1
MAX_IMAGES = 1000  # of a run's held-out images, evenly spread
QUERY_CHUNK = 512  # bounds memory where torch has no fused kernel (fp64 on a GPU): then 512 x L scores a head are held


def scale_mass(q: Tensor, k: Tensor, schedule: ScaleSchedule, chunk: int = QUERY_CHUNK) -> Tensor:
    """Attention mass of every query on every scale's keys under block-causal attention.

    Args:
        q, k: `(B, H, L, head_dim)`, scaled so that `softmax(q k^T)` is the attention map.
        schedule: the scales of the L tokens.
        chunk: queries that are handled at a time.

    Returns:
        `(B, H, L, S)`, non-negative; rows sum to 1 and are 0 for scales finer than the query's.
    """
    num_scales, head_dim = schedule.num_scales, q.shape[-1]
    width = max(num_scales, head_dim)  # fused kernels want queries, keys and values of one width; zeros change nothing
    q, k = (F.pad(t, (0, width - head_dim)) for t in (q, k))
    levels = torch.tensor(schedule.levels, device=q.device)
    member = F.pad(F.one_hot(levels, num_scales).to(q.dtype), (0, width - num_scales)).expand_as(k)
    mass = []
    for step in schedule.steps():
        seen = slice(0, step.stop)
        for start in range(step.start, step.stop, chunk):
            queries = q[:, :, start : min(start + chunk, step.stop)]
            out = F.scaled_dot_product_attention(queries, k[:, :, seen], member[:, :, seen], scale=1.0)
            mass.append(out[..., :num_scales])
    return torch.cat(mass, dim=2)


@dataclass(frozen=True)
class AttentionStats:
    """Attention mass by layer, head, query scale and key scale: mean and standard deviation over images.

    `mean` and `sd` are `(N, H, S, S)`, float64, averaged over the queries of a scale. `intra_sd` `(N,)` is the standard
    deviation over images of a layer's intra share. `layers` are the numbers of the N layers in the model.
    """

    layers: tuple[int, ...]
    sides: tuple[int, ...]
    num_images: int
    mean: Tensor
    sd: Tensor
    intra_sd: Tensor

    @property
    def matrix(self) -> Tensor:
        """`(N, S, S)`: mass that queries of a scale (row) put on keys of a scale (column); rows sum to 1."""
        return self.mean.mean(1)

    @property
    def intra_per_scale(self) -> Tensor:
        """`(N, S)`: mass on the own scale, by query scale."""
        return self.matrix.diagonal(dim1=1, dim2=2)

    @property
    def intra_per_head(self) -> Tensor:
        """`(N, H)`: mass on the own scale, every query counting the same."""
        return _over_queries(self.mean.diagonal(dim1=2, dim2=3), ScaleSchedule(self.sides))

    @property
    def intra(self) -> Tensor:
        """`(N,)`: mass on the own scale, mean over heads and all L queries."""
        return self.intra_per_head.mean(1)

    @property
    def intra_without_first_scale(self) -> Tensor:
        """`(N,)`: the same without the first scale, whose queries have nothing else to look at."""
        lengths = torch.tensor(ScaleSchedule(self.sides).lengths, dtype=torch.float64)
        return (self.intra_per_scale[:, 1:] * lengths[1:]).sum(1) / lengths[1:].sum()

    @property
    def share(self) -> float:
        """Intra share of the model: the mean over its global layers. Table 1's score half; inter is 1 minus it."""
        return float(self.intra.mean())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "sd", "intra_sd")}
        plain = {"layers": list(self.layers), "sides": list(self.sides), "num_images": self.num_images}
        return {"schema_version": SCHEMA_VERSION, **plain, "share": self.share, **arrays}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "AttentionStats":
        """Read what `to_json` wrote; another schema version or a missing field is a `UserError`."""
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(f"attention.json: schema_version {version!r}; this version reads {SCHEMA_VERSION}")
        try:
            arrays = {name: torch.tensor(values[name], dtype=torch.float64) for name in ("mean", "sd", "intra_sd")}
            return cls(tuple(values["layers"]), tuple(values["sides"]), int(values["num_images"]), **arrays)
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


@torch.inference_mode()
def attention_stats(
    model: ScaleTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Callable[[int, int], None] | None = None,
    total: int = 0,
) -> AttentionStats:
    """Attention mass of a model's global layers under teacher forcing, streamed over batches of images.

    Args:
        model: a backbone with at least one layer that has a `global` mixer; left in the mode it was in.
        batches: `(labels (B,), inputs (B, L - n_0, C))`, as the model's forward takes them.
        progress: called with (images done, `total`).
        total: images in all, for `progress`.

    Raises:
        UserError: a model without global attention, or no images.
    """
    layers = [(i, m) for i, block in enumerate(model.blocks) for m in block.mixers() if isinstance(m, GlobalAttention)]
    if not layers:
        raise UserError(f"model.pattern: {model.config.pattern!r} has no global layer; attention mass needs one")
    schedule = model.schedule
    mass, intra = _Running(), _Running()
    found: dict[int, Tensor] = {}

    def observe(number: int, mixer: GlobalAttention, x: Tensor) -> None:
        q, k, _ = mixer.project(x)
        by_query = scale_mass(*_at_least_fp32(q, k), schedule)
        means = [part.double().mean(2) for part in by_query.split(schedule.lengths, dim=2)]
        found[number] = torch.stack(means, dim=2).cpu()  # (B, H, S query, S key)

    hooks = [
        mixer.register_forward_pre_hook(lambda mixer, args, number=number: observe(number, mixer, args[0]))
        for number, mixer in layers
    ]
    was_training = model.training
    model.eval()
    try:
        for labels, inputs in batches:
            found.clear()
            model(labels, inputs)
            batch = torch.stack([found[number] for number, _ in layers], dim=1)  # (B, N, H, S, S)
            mass.add(batch)
            intra.add(_over_queries(batch.diagonal(dim1=3, dim2=4), schedule).mean(2))
            if progress:
                progress(mass.count, total)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if not mass.count:
        raise UserError("attention: no images to measure on; allowed: at least one")
    numbers = tuple(number for number, _ in layers)
    return AttentionStats(numbers, schedule.sides, mass.count, mass.mean, mass.sd, intra.sd)


def _over_queries(by_scale: Tensor, schedule: ScaleSchedule) -> Tensor:
    """Mean over queries of what is given by query scale, `(..., S)`: a scale weighs as many as it has tokens."""
    lengths = torch.tensor(schedule.lengths, dtype=torch.float64)
    return (by_scale * lengths).sum(-1) / lengths.sum()


def _at_least_fp32(*tensors: Tensor) -> list[Tensor]:
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def run_attention(
    store: Store, run: RunDirectory, progress: Callable[[int, int], None] | None = None
) -> AttentionStats:
    """Attention mass of a finished run on its held-out images, measured once and kept as `attention.json`.

    The file names the weights that it was measured on; with other weights it is measured again.

    Raises:
        UserError: no weights, no tokenizer or no tokens, or a model without global attention.
    """
    if not run.weights.is_file():
        raise UserError(f"{run.weights}: not there; allowed: a run that has finished training")
    weights, path = file_digest(run.weights), run.path / "attention.json"
    try:
        kept = read_json(path)
        if kept["weights_sha256"] == weights:
            return AttentionStats.from_json(kept)
    except (FileNotFoundError, UserError, KeyError, TypeError):
        pass  # a cache: whatever is wrong with it, measuring again mends it
    config = run.config()
    context = stages.Context(config, store, progress=lambda stage, done, total: None, should_stop=lambda: False)
    try:
        tokens, tokenizer = stages.open_tokens(context, "heldout"), stages.load_tokenizer(context)
        model = load_generator(run, context.device)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not there; the command that made the run makes it again") from None
    chosen = spread_indices(len(tokens.tokens), MAX_IMAGES)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(chosen), config.runtime.sample_batch):
            part = chosen[start : start + config.runtime.sample_batch]
            codes, labels = (
                torch.as_tensor(np.asarray(a[part], dtype=np.int64)) for a in (tokens.tokens, tokens.labels)
            )
            codes, labels = codes.to(context.device), labels.to(context.device)
            yield labels, tokenizer.quantize.inputs(codes)

    stats = attention_stats(model, batches(), progress, len(chosen))
    write_json(path, {**stats.to_json(), "weights_sha256": weights, "split": "heldout"})
    return stats
