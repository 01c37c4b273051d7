"""The probe `reach`: how far back a token's output depends on others, through the whole model.

Whatever the mixers are: what is cut is the input of other tokens, and gradients go through everything. Shapes: `B`
images, `L` tokens, `D` width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mvar.config import Config, RunConfig
from mvar.errors import UserError
from mvar.probes.contract import Probe, Row, Shown, check_scales
from mvar.probes.knockout import Bench
from mvar.probes.subject import Subject, over_images
from mvar.scales import ScaleSchedule, Span
from mvar.transformer import ScaleTransformer

SCALES, TOKENS = "scales back", "tokens away"


class ReachSettings(Config):
    """What `reach` measures."""

    scales: tuple[int, ...] = Field(default=(), description="Of the tokens that are predicted; none: the finest.")
    tokens: int = Field(default=16, ge=1, description="So many of them at most, evenly spread over the scale.")


class Reach(Probe):
    """How far back a token's prediction depends on others, by scale and by distance, by cuts and by gradients.

    Counted in `scales back` are the tokens of all scales at least so far back; in `tokens away` those of the own scale
    at least so many rows or columns away. By cuts: their inputs are those of another held-out image, and the true token
    becomes less likely. By gradients: their share in the norms of the gradients of its NLL, of all other tokens'. Both
    are means over the same tokens: those that have a token so far away.
    """

    version = 2  # 1: tokens that have none so far away counted as zeros in the share
    Settings = ReachSettings
    settings: ReachSettings
    fields = (
        Shown("distance", "at least so far", 0),
        Shown("by", "counted in"),
        Shown("scale", "predicted scale", 0),
        Shown("tokens", "tokens at most", 0),
    )
    values = (
        Shown("change", "cut: change of NLL (bits/token)", 3),
        Shown("share", "share of the gradients' norms (%)", 1),
        Shown("num_tokens", "tokens", 0, is_plotted=False),
    )

    def __init__(self, settings: ReachSettings) -> None:
        super().__init__(settings)
        self._norms: dict[tuple[int, int], np.ndarray] = {}

    def cases(self, config: RunConfig) -> list[Row]:
        """See `Probe.cases`."""
        schedule, settings = config.token_space.schedule, self.settings
        if schedule.num_scales < 2:
            raise UserError("probe reach: a single scale; allowed: a model of two or more")
        check_scales("scales", settings.scales, 1, schedule.num_scales - 1)
        return [
            {"distance": distance, "by": by, "scale": scale, "tokens": settings.tokens}
            for scale in settings.scales or (schedule.num_scales - 1,)
            for by, last in ((SCALES, scale), (TOKENS, schedule.sides[scale] - 1))
            for distance in range(1, last + 1)
        ]

    def measure(self, case: Row, subject: Subject) -> Row:
        """See `Probe.measure`."""
        schedule, scale = subject.model.schedule, case["scale"]
        queries = chosen_tokens(schedule, scale, case["tokens"])
        far = {i: farther(schedule, i, case["by"], case["distance"]) for i in queries}
        counted = [(number, token) for number, token in enumerate(queries) if far[token].any()]
        if not counted:
            return {"change": None, "share": None, "num_tokens": 0}
        norms, shares = self._gradients(subject.bench, case, queries), []
        for number, token in counted:
            others = np.delete(norms[:, number], token, 1).sum(1)
            with np.errstate(invalid="ignore"):
                shares.append(norms[:, number][:, far[token]].sum(1) / others)
        clean, start = token_bits(subject.bench, scale, None), schedule.offsets[scale]
        cut, changes = clean, []
        for number, token in counted:
            if not number or case["by"] != SCALES:  # by scales they are the same tokens for all queries
                cut = token_bits(subject.bench, scale, far[token])
            changes.append(cut[:, token - start] - clean[:, token - start])
        found: Row = over_images("change", np.mean(changes, axis=0))
        return found | over_images("share", 100 * np.mean(shares, axis=0)) | {"num_tokens": len(counted)}

    def _gradients(self, bench: Bench, case: Row, queries: list[int]) -> np.ndarray:
        key = case["scale"], case["tokens"]
        if key not in self._norms:
            self._norms[key] = gradient_norms(bench, case["scale"], queries)
        return self._norms[key]


def chosen_tokens(schedule: ScaleSchedule, scale: int, limit: int) -> list[int]:
    """At most so many tokens of a scale, evenly spread, by their numbers in the image."""
    length = schedule.lengths[scale]
    count = min(length, limit)
    return [schedule.offsets[scale] + (2 * n + 1) * length // (2 * count) for n in range(count)]


def farther(schedule: ScaleSchedule, token: int, by: str, distance: int) -> np.ndarray:
    """`(L,)` booleans: which tokens lie at least so far back from one, or away from it in its own scale."""
    levels = np.array(schedule.levels)
    own = levels[token]
    if by == SCALES:
        return own - levels >= distance
    side, start = schedule.sides[own], schedule.offsets[own]
    places = np.arange(schedule.num_tokens) - start
    rows, columns = np.divmod(places, side)
    row, column = divmod(token - start, side)
    away = np.maximum(abs(rows - row), abs(columns - column))
    return (levels == own) & (away >= distance)


@contextmanager
def embedding(model: ScaleTransformer, x: Tensor) -> Iterator[None]:
    """Inside the block the tokens' embeddings are these `(B, L, D)`, whatever the inputs."""
    model.embed = partial(_given, x)  # pyright: ignore[reportAttributeAccessIssue]  before the class's
    try:
        yield
    finally:
        del model.embed


def _given(x: Tensor, *_: Any) -> Tensor:
    return x


def _embedded(model: ScaleTransformer, bench: Bench, numbers: np.ndarray, span: Span) -> Tensor:
    labels, inputs = bench.labels[numbers], bench.inputs[numbers]
    return model.embed(model.class_emb(labels), inputs[:, : span.stop - span.schedule.lengths[0]], span)


def _nll(bench: Bench, x: Tensor, numbers: np.ndarray, span: Span) -> Tensor:
    """Bits `(B, n)` of the tokens of the span's last scale, of embeddings `(B, L, D)`."""
    own = span.local(span.last - 1)
    with embedding(bench.model, x):
        logits, _ = bench.model(bench.labels[numbers], x, span)
    targets = bench.tokens[numbers, own]
    flat = F.cross_entropy(logits[:, own].double().flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view_as(targets) / np.log(2)


@torch.inference_mode()
def token_bits(bench: Bench, scale: int, cut: np.ndarray | None) -> np.ndarray:
    """Bits `(M, n)` of a scale's tokens, with the embeddings of some tokens `(L,)` those of another image."""
    span, found = bench.model.schedule.span(0, scale + 1), []
    for part in bench.parts():
        numbers = np.arange(part.start, part.stop)
        x = _embedded(bench.model, bench, numbers, span)
        if cut is not None:
            other = _embedded(bench.model, bench, bench.partners[numbers], span)
            x = torch.where(torch.from_numpy(cut[: span.stop, None]).to(x.device), other, x)
        found.append(_nll(bench, x, numbers, span).cpu().numpy())
    return np.concatenate(found)


def gradient_norms(bench: Bench, scale: int, queries: list[int]) -> np.ndarray:
    """`(M, Q, L)`: norms of the gradients of each query's NLL by the embedding of every token; 0 for finer scales."""
    span, schedule = bench.model.schedule.span(0, scale + 1), bench.model.schedule
    norms = np.zeros((bench.num_images, len(queries), schedule.num_tokens))
    for part in bench.parts():
        numbers = np.arange(part.start, part.stop)
        with torch.inference_mode(False), torch.enable_grad():
            with torch.no_grad():
                x = _embedded(bench.model, bench, numbers, span)
            x = x.clone().requires_grad_()
            bits = _nll(bench, x, numbers, span)
            for number, token in enumerate(queries):
                (gradient,) = torch.autograd.grad(
                    bits[:, token - schedule.offsets[scale]].sum(), x, retain_graph=number + 1 < len(queries)
                )
                norms[numbers, number, : span.stop] = gradient.norm(dim=-1).double().cpu().numpy()
    return norms
