"""What a model costs, from its config alone: parameters, FLOPs, score cells, state. Nothing is built or run.

FLOPs count matrix products and convolutions (a multiply-add is 2); norms, activations and softmax are left out.
"""

from numbers import Real
from typing import Any, cast

from mvar.config import ModelConfig, TokenSpace
from mvar.errors import UserError, quoted
from mvar.mixers.base import Chosen, chosen_in
from mvar.pattern import parse_branches
from mvar.scales import ScaleSchedule, Span


def _hidden(model: ModelConfig) -> int:
    return round(model.width * model.mlp_ratio)


def _chunks(layer: str) -> int:
    """Vectors of width D that modulate a layer: gate, scale and shift of each branch and of the feed-forward."""
    return 3 * (len(parse_branches(layer)) + 1)


def layer_params(model: ModelConfig, layer: str) -> dict[str, int]:
    """Trainable parameters of one layer by part: a key for every mixer's text, `ffn`, and `ada_lin` or `ada_gss`."""
    width, mixers = model.width, chosen_in(model, layer)
    parts = {
        text: _whole(text, "num_params", cls.num_params(model, settings)) for text, (cls, settings) in mixers.items()
    }
    parts["ffn"] = 2 * width * _hidden(model) + _hidden(model) + width
    chunks = _chunks(layer)
    if model.shared_adaln:
        return parts | {"ada_gss": chunks * width}
    return parts | {"ada_lin": (width + 1) * chunks * width}


def _whole(text: str, what: str, count: Any) -> int:
    """What a mixer has counted; a `UserError` of one that gives something else than a number."""
    if not isinstance(count, Real):
        raise UserError(f"mixer {text!r}: {what} gives {quoted(count, 60)}; allowed: a whole number")
    return cast(int, count)


def num_params(model: ModelConfig, space: TokenSpace) -> int:
    """Trainable parameters of the generator; exactly those of the official models (golden counts)."""
    width, schedule = model.width, space.schedule
    embeddings = (space.code_channels + 1) * width + (space.num_classes + 1) * width
    positions = (schedule.num_scales + schedule.lengths[0] + schedule.num_tokens) * width
    head = (width + 1) * 2 * width + (width + 1) * space.vocab_size
    shared = 0
    if model.shared_adaln:
        shared = (width + 1) * max(map(_chunks, model.layers)) * width
    layers = sum(sum(layer_params(model, layer).values()) for layer in model.layers)
    return embeddings + positions + head + shared + layers


def layer_flops(model: ModelConfig, span: Span, layer: str) -> dict[str, int]:
    """Forward FLOPs of one layer on a span for one image, by part: a key for every mixer's text, `ffn`, `adaln`.

    The modulation is made once, with the first scale.
    """
    mixers = chosen_in(model, layer)
    parts = {text: _whole(text, "flops", cls.flops(model, settings, span)) for text, (cls, settings) in mixers.items()}
    parts["ffn"] = 4 * span.length * model.width * _hidden(model)
    chunks = _chunks(layer)
    parts["adaln"] = 0 if model.shared_adaln or span.first else 2 * chunks * model.width**2
    return parts


def _head_flops(model: ModelConfig, space: TokenSpace, span: Span) -> int:
    return 2 * span.length * model.width * space.vocab_size


def span_flops(model: ModelConfig, space: TokenSpace, span: Span) -> int:
    """Forward FLOPs of the generator on a span for one image, given the state of the coarser scales."""
    width = model.width
    from_codes = span.length - (space.schedule.lengths[0] if span.first == 0 else 0)
    total = 2 * from_codes * space.code_channels * width + _head_flops(model, space, span) + 4 * width**2
    if model.shared_adaln and not span.first:
        total += 2 * max(map(_chunks, model.layers)) * width**2
    return total + sum(sum(layer_flops(model, span, layer).values()) for layer in model.layers)


def forward_flops(model: ModelConfig, space: TokenSpace) -> int:
    """FLOPs of one teacher-forced forward pass for one image."""
    return span_flops(model, space, space.schedule.span())


def train_flops(model: ModelConfig, space: TokenSpace, num_images: int) -> int:
    """FLOPs of training on `num_images` images: three forward passes each, the backward pass counting for two."""
    return 3 * num_images * forward_flops(model, space)


def sample_flops(model: ModelConfig, space: TokenSpace, *, guided: bool) -> int:
    """FLOPs of sampling one image scale by scale with state; guidance runs all but the head for class and no class."""
    flops = sum(span_flops(model, space, span) for span in space.schedule.steps())
    return 2 * flops - _head_flops(model, space, space.schedule.span()) if guided else flops


def state_bytes(model: ModelConfig, space: TokenSpace, *, element_bytes: int = 4) -> int:
    """Bytes of mixer state that one image (one guidance branch) holds: the sum of its mixers' peaks."""
    mixers = [chosen for layer in model.layers for chosen in chosen_in(model, layer).values()]
    return sum(cls.state_bytes(model, settings, space.schedule, element_bytes) for cls, settings in mixers)


def _score_cells(model: ModelConfig, schedule: ScaleSchedule) -> dict[str, int]:
    chosen = {name: Chosen.of(model, name) for name in ("global", "intra")}
    return {name: cls.score_cells(model, settings, schedule.span()) for name, (cls, settings) in chosen.items()}


def attention_cost(schedule: ScaleSchedule) -> dict[str, dict[str, float]]:
    """Table 1's cost: the shares of global attention's score cells that lie inside a scale and between scales.

    Returns:
        `dense`: of all L x L cells, those that the block-causal mask discards included (what the paper prints);
        `kept`: of the cells that the mask keeps, which is also what sampling with keys and values cached computes.
        Each has `intra` and `inter`, which sum to 1.
    """
    cells = _score_cells(ModelConfig(), schedule)  # of a head: the model's sizes play no part
    shares = {"dense": cells["intra"] / schedule.num_tokens**2, "kept": cells["intra"] / cells["global"]}
    return {name: {"intra": share, "inter": 1 - share} for name, share in shares.items()}


def layer_attention_cost(model: ModelConfig, schedule: ScaleSchedule) -> dict[str, float]:
    """Table 1's third accounting: FLOPs of a whole `global` layer, split by what only cross-scale cells need.

    Returns:
        Shares that sum to 1: `intra` (score cells inside a scale), `inter` (score cells between scales) and `rest`
        (projections, feed-forward, AdaLN), which no split of the scores can save.
    """
    span = schedule.span()
    total = sum(layer_flops(model, span, "global").values())
    cells = _score_cells(model, schedule)
    intra, every = (4 * model.width * cells[name] / total for name in ("intra", "global"))
    return {"intra": intra, "inter": every - intra, "rest": 1 - every}
