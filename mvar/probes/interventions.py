"""A cut in a model: where it goes, what stands in for what is cut, and a random cut of the same size beside it.

Shapes: `B` batch, `H` heads, `L` tokens of an image.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.errors import UserError, quoted
from mvar.kernels.attention import Severed
from mvar.mixers.base import Mixer, chosen_in
from mvar.mixers.cutting import editing_output, editing_state, emptied, map_tensors, severing
from mvar.pattern import mixer_name
from mvar.probes.cut_text import OF_KEYS, Cut
from mvar.scales import ScaleSchedule, Span
from mvar.transformer import ScaleTransformer

CONTROL_STREAM = 17  # of the random numbers of the controls


@dataclass(frozen=True)
class Site:
    """One mixer of a model, and what is cut in it: pairs, or the state before some scales, or else its output."""

    mixer: Mixer
    visible: Tensor  # (L, L) booleans, on the CPU
    pairs: Tensor | None = None  # (H or 1, L, L) booleans
    scales: tuple[int, ...] = ()


def mixers_of_model(model: ScaleTransformer) -> list[tuple[int, str, Mixer]]:
    """Layer, name and module of every mixer, in order."""
    found = []
    for number, (layer, block) in enumerate(zip(model.config.layers, model.each_block(), strict=True)):
        names = map(mixer_name, chosen_in(model.config, layer))
        found += [(number, name, mixer) for name, mixer in zip(names, block.mixers(), strict=True)]
    return found


def sites_of(model: ScaleTransformer, cut: Cut) -> list[Site]:
    """Where a cut goes in a model.

    Raises:
        UserError: a layer, head, scale or mixer that the model has not, or nothing in it that could be cut so.
    """
    _check(model, cut)
    part = "keys" if cut.target in OF_KEYS else cut.target
    there = []
    for layer, name, mixer in mixers_of_model(model):
        wanted = cut.mixer in (None, name) and (not cut.layers or layer in cut.layers)
        if wanted and (part == "branch" or part in mixer.cuts):
            there.append(_site(cut, mixer, _visible(mixer, model.schedule), model.schedule))
    sites = [site for site in there if site.pairs is None or site.pairs.any()]
    if not sites:
        told, allowed = f"{quoted(model.config.pattern)} has no such part", possible(model)
        if there:
            asking = "no query" if cut.queries is None else f"no query of scale {cut.queries}"
            told = f"{asking} sees such keys in {quoted(model.config.pattern)}"
            allowed = _seen([site.visible for site in there], model.schedule, cut.queries)
        raise UserError(f"cut: {quoted(cut.text)}: {told}; allowed: {', '.join(allowed)}")
    return sites


def _visible(mixer: Mixer, schedule: ScaleSchedule) -> Tensor:
    return torch.from_numpy(np.asarray(mixer.visible(mixer.settings, schedule)))


def _check(model: ScaleTransformer, cut: Cut) -> None:
    scales = model.schedule.num_scales
    first = 1 if cut.target == "state" else 0  # before the first scale there is no state
    numbers = [
        *(("layer", n, 0, model.config.depth) for n in cut.layers),
        *(("head", n, 0, model.config.num_heads) for n in cut.heads),
        *((name, n, at, scales) for name, n, at in (("scale", cut.scale, first), ("queries", cut.queries, 0))),
    ]
    for name, number, lowest, count in numbers:
        if number is not None and not lowest <= number < count:
            allowed = f"{lowest} to {count - 1}" if lowest < count else "none, where there is a single scale"
            raise UserError(f"cut {quoted(cut.text)}: {name} {number}; allowed: {allowed}")


def possible(model: ScaleTransformer) -> list[str]:
    """What can be cut in a model, as forms of a cut's text."""
    mixers = mixers_of_model(model)
    seen = [_visible(mixer, model.schedule) for _, _, mixer in mixers if "keys" in mixer.cuts]
    texts = _seen(seen, model.schedule) if seen else []
    keys = dict.fromkeys("scale:K" if ":" in text else text for text in texts)
    state = ("state", "state:K") if any("state" in mixer.cuts for _, _, mixer in mixers) else ()
    return [*keys, *state, *dict.fromkeys(f"branch:{name}" for _, name, _ in mixers)]


def _seen(visible: Sequence[Tensor], schedule: ScaleSchedule, queries: int | None = None) -> list[str]:
    """Cuts of keys that a query sees, or one of scale `queries`, in one of several mixers' `visible`, as texts."""
    rows = [part.any(0).split(schedule.lengths) for part in torch.stack([*visible]).any(0).split(schedule.lengths)]
    seen = torch.tensor([[bool(keys.any()) for keys in row] for row in rows])  # (S, S), by query and key scale
    if queries is not None:
        seen = seen & (torch.arange(len(seen)) == queries)[:, None]
    parts = {"own": seen.diagonal(), "coarser": seen.tril(-1)}
    scales = {f"scale:{k}": seen[:, k] for k in range(len(seen))}
    return [text for text, part in (parts | scales | {"all": seen}).items() if part.any()]


def _site(cut: Cut, mixer: Mixer, visible: Tensor, schedule: ScaleSchedule) -> Site:
    if cut.target == "branch":
        return Site(mixer, visible)
    if cut.target == "state":
        return Site(mixer, visible, scales=tuple(range(1, schedule.num_scales)) if cut.scale is None else (cut.scale,))
    levels = torch.tensor(schedule.levels)
    query, key = levels[:, None], levels[None]
    wanted = {
        "own": key == query,
        "coarser": key < query,
        "scale": (key == (-1 if cut.scale is None else cut.scale)).expand(len(levels), -1),
        "all": torch.ones_like(visible),
    }[cut.target]
    pairs = wanted & visible
    if cut.queries is not None:
        pairs = pairs & (query == cut.queries)
    if not cut.heads:
        return Site(mixer, visible, pairs[None])
    heads = torch.zeros(mixer.config.num_heads, 1, 1, dtype=torch.bool)
    heads[list(cut.heads)] = True
    return Site(mixer, visible, pairs & heads)


def shares_kept(sites: Sequence[Site]) -> float | None:
    """Share of the pairs of the sites' heads that is left; None where no pairs are cut."""
    cut = [(site.pairs, site.visible) for site in sites if site.pairs is not None]
    if not cut:
        return None
    left = sum(float((visible & ~pairs).sum()) / len(pairs) for pairs, visible in cut)
    return left / sum(float(visible.sum()) for _, visible in cut)


def random_sites(sites: Sequence[Site], draw: int) -> list[Site] | None:
    """The same sites with random pairs cut: of every query and head as many, of all it sees, the same in all layers.

    Args:
        sites: of a cut.
        draw: number of the draw.

    Returns:
        None where there is nothing to choose: no pairs are cut, or of each query none or all.
    """
    if not any(site.pairs is not None and _is_choice(site) for site in sites):
        return None
    length = len(sites[0].visible)
    order = torch.from_numpy(np.random.default_rng((CONTROL_STREAM, draw)).random((length, length)))
    found = []
    for site in sites:
        assert site.pairs is not None
        ranks = order.masked_fill(~site.visible, 2.0).argsort(-1).argsort(-1)  # of what is visible come first
        found.append(replace(site, pairs=ranks < site.pairs.sum(-1, keepdim=True)))
    return found


def _is_choice(site: Site) -> bool:
    assert site.pairs is not None
    counts = site.pairs.sum(-1)
    return bool(((counts > 0) & (counts < site.visible.sum(-1))).any())


# What stands in for what is cut ---------------------------------------------------------------------------------------


class Activations:
    """What the sites of a cut have in a run without it: keys and values, states or outputs, one value a site."""

    def __init__(self, values: dict[int, Any]) -> None:
        self._values = values

    def of(self, number: int) -> Any:
        """Of a site: `{"k", "v"}` `(B, H, L, head_dim)`, `{"y"}` `(B, L, D)`, or a state by scale."""
        return self._values[number]

    @staticmethod
    def mean(batches: "Iterator[Activations]") -> "Activations":
        """Over the images of several batches, as a batch of 1."""
        total, count = None, 0
        for batch in batches:
            count += batch.batch_size
            sums = map_tensors(lambda t: t.double().sum(0, keepdim=True), batch._values)
            total = sums if total is None else map_tensors(torch.add, total, sums)
        return Activations(map_tensors(lambda t: t / count, total))

    @property
    def batch_size(self) -> int:
        """Images."""
        sizes: list[int] = []
        map_tensors(lambda t: sizes.append(len(t)) or t, self._values)
        return sizes[0]


@contextmanager
def recording(sites: Sequence[Site]) -> Iterator[Activations]:
    """Inside the block the model runs on whole images as ever; what the sites have is kept."""
    values: dict[int, Any] = {number: {} for number in range(len(sites))}
    with ExitStack() as stack:
        for number, site in enumerate(sites):
            stack.enter_context(_recorded(site, values[number]))
        yield Activations(values)


def _recorded(site: Site, found: dict[Any, Any]) -> Any:
    if site.pairs is not None:
        length = len(site.visible)

        def see(k: Tensor, v: Tensor, first: int) -> tuple[Tensor, Tensor]:
            for name, part in (("k", k), ("v", v)):
                if name not in found:
                    found[name] = part.new_zeros(*part.shape[:2], length, part.shape[3])
                found[name][:, :, first : first + part.shape[2]] = part
            return k, v

        return severing(site.mixer, Severed(torch.zeros_like(site.pairs), see))
    if site.scales:

        def keep(state: Any, scale: int) -> Any:
            found[scale] = state
            return state

        return editing_state(site.mixer, site.scales, keep)

    def keep_output(y: Tensor, span: Span) -> Tensor:
        found["y"] = y
        return y

    return editing_output(site.mixer, keep_output)


@contextmanager
def cutting(sites: Sequence[Site], instead: Activations | None = None) -> Iterator[None]:
    """Inside the block the model runs with the cut: teacher forcing and sampling alike.

    Args:
        sites: where.
        instead: what stands in for what is cut, of as many images as are run (under guidance each twice) or of one;
            None: nothing does.
    """
    with ExitStack() as stack:
        for number, site in enumerate(sites):
            stack.enter_context(_cut(site, None if instead is None else instead.of(number)))
        yield


def _cut(site: Site, instead: dict[Any, Any] | None) -> Any:
    if site.pairs is not None:
        return severing(site.mixer, Severed(site.pairs, partial(_other_keys, instead) if instead else None))
    if site.scales:
        return editing_state(site.mixer, site.scales, partial(_other_state, instead) if instead else emptied)

    def replaced(y: Tensor, span: Span) -> Tensor:
        if instead is None:
            return torch.zeros_like(y)
        return _as_many(instead["y"][:, span.start : span.stop], y).expand_as(y)

    return editing_output(site.mixer, replaced)


def _other_keys(instead: dict[str, Tensor], k: Tensor, v: Tensor, first: int) -> tuple[Tensor, Tensor]:
    tokens = slice(first, first + k.shape[2])
    return _as_many(instead["k"][:, :, tokens], k), _as_many(instead["v"][:, :, tokens], v)


def _other_state(instead: dict[int, Any], state: Any, scale: int) -> Any:
    whole = {"memory_format": torch.contiguous_format}  # a copy: a mixer may write where its state is
    return map_tensors(lambda own, other: _as_many(other, own).expand_as(own).clone(**whole), state, instead[scale])


def _as_many(other: Tensor, own: Tensor) -> Tensor:
    """What stands in, in the type of what it stands for; under guidance the half without a class has the same."""
    other = other.to(own.dtype)
    return torch.cat([other, other]) if len(own) == 2 * len(other) and len(other) > 1 else other
