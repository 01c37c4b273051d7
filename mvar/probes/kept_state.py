"""The probe `state`: what a model carries from scale to scale, less of it or in fewer bits, at sampling only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mvar.config import Config, RunConfig, SampleConfig
from mvar.errors import UserError, one_of
from mvar.kernels.attention import Severed
from mvar.mixers.base import Chosen, chosen_in
from mvar.mixers.cutting import editing_state, emptied, map_tensors, severing
from mvar.probes.contract import Probe, Row, Shown, check_scales
from mvar.probes.interventions import mixers_of_model
from mvar.probes.prefix import drawing
from mvar.probes.subject import Subject, over_images
from mvar.sampling import balanced_labels
from mvar.scales import Span
from mvar.transformer import ScaleTransformer

WHOLE = "whole"
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StateSettings(Config):
    """What `state` measures."""

    keep: tuple[int, ...] = Field(
        default=(), description="Last scales that are known, the own one included; none: 1 to S."
    )
    precision: tuple[str, ...] = Field(default=(WHOLE, *HALVES), description="Of what is kept: whole, bf16, fp16.")
    samples: int | None = Field(default=None, ge=2, description="Images drawn; none: evaluation.num_images.")
    seed: int = Field(default=0, ge=0, description="Of the drawing.")


class State(Probe):
    """Quality against bytes when keys, values or states are kept of the last w scales only, or in half precision.

    The model was trained with all of them: only prediction and drawing do with less. An attention does not see keys
    further back; a mixer with a state begins it anew w - 1 scales before. NLL is of held-out images, FID of images that
    are drawn by the run's own settings. Bytes are of one image, all layers, at the peak between two steps; half
    precision is tried with all scales.
    """

    Settings = StateSettings
    settings: StateSettings
    fields = (
        Shown("keep", "scales kept", 0),
        Shown("precision", "precision"),
        Shown("limit", "number of drawn images", 0),
        Shown("seed", "seed of the drawing", 0),
    )
    values = (
        Shown("change", "change of NLL (bits/token)", 4, better="lower"),
        Shown("fid", "FID", 2, better="lower"),
        Shown("kib", "state (KiB an image)", 1),
        Shown("bits", "NLL (bits/token)", 3, is_plotted=False),
    )
    axis = "kib"

    def cases(self, config: RunConfig) -> list[Row]:
        """See `Probe.cases`."""
        settings, last = self.settings, config.token_space.schedule.num_scales
        check_scales("keep", settings.keep, 1, last)
        for precision in settings.precision:
            if precision not in (WHOLE, *HALVES):
                raise one_of("precision", precision, (WHOLE, *HALVES))
        if not settings.precision:
            raise UserError(f"precision: none; allowed: {', '.join((WHOLE, *HALVES))}")
        if settings.keep and WHOLE not in settings.precision:
            raise UserError(f"keep: half precision is tried with all scales alone; allowed: with {WHOLE} in precision")
        for _, name, chosen in chosen_mixers(config):
            if not chosen.cls.cuts and chosen.cls.state_bytes(
                config.model, chosen.settings, config.token_space.schedule, 4
            ):
                raise UserError(f"probe state: mixer {name!r} says of no part that it can be cut; allowed: cuts in it")
        limit = (settings.samples or config.evaluation.num_images) if self.has_fid else None
        halves = [precision for precision in settings.precision if precision != WHOLE]
        kept = [(w, WHOLE) for w in settings.keep or range(1, last + 1) if WHOLE in settings.precision]
        return [
            {"keep": w, "precision": precision, "limit": limit, "seed": settings.seed}
            for w, precision in (*kept, *((last, half) for half in halves))
        ]

    def sample(self, case: Row, config: RunConfig) -> SampleConfig:
        """See `Probe.sample`."""
        return drawing(config.sample, True, seed=case["seed"])

    def measure(self, case: Row, subject: Subject) -> Row:
        """See `Probe.measure`."""
        model, bench = subject.model, subject.bench
        lengths = np.array(model.schedule.lengths, float)
        clean = bench.clean @ lengths / lengths.sum()
        with keeping(model, case["keep"], HALVES.get(case["precision"])):
            bits = bench.bits() @ lengths / lengths.sum()
            fid = None
            if subject.has_fid:
                labels = balanced_labels(case["limit"], model.space.num_classes).to(bench.tokens.device)
                fid = subject.fid(subject.draw(labels, bench.tokens.new_empty(len(labels), 0)))
        kib = bytes_kept(model, case["keep"]) / (2 if case["precision"] in HALVES else 1) / 1024
        return over_images("change", bits - clean) | {"fid": fid, "kib": kib, "bits": float(bits.mean())}


def chosen_mixers(config: RunConfig) -> Iterator[tuple[int, str, Chosen]]:
    """Layer, text and choice of every mixer of a model, in order."""
    for layer, text in enumerate(config.model.layers):
        yield from ((layer, name, chosen) for name, chosen in chosen_in(config.model, text).items())


@contextmanager
def keeping(model: ScaleTransformer, keep: int, half: torch.dtype | None = None) -> Iterator[None]:
    """Inside the block every token knows its own scale and `keep` - 1 before it, in teacher forcing and sampling.

    Args:
        model: what is run.
        keep: scales; all of them: what is kept is whole.
        half: what is carried from scale to scale is rounded to this type.
    """
    schedule, levels = model.schedule, torch.tensor(model.schedule.levels)
    with ExitStack() as stack:
        for _, _, mixer in mixers_of_model(model):
            if keep < schedule.num_scales and "keys" in mixer.cuts:
                stack.enter_context(severing(mixer, Severed((levels[:, None] - levels >= keep)[None])))
            elif keep < schedule.num_scales and "state" in mixer.cuts:
                mixer.forward = partial(_recent, mixer.forward, keep)  # the instance's, before the class's
                stack.callback(delattr, mixer, "forward")
            if half is not None:
                rounded = partial(map_tensors, partial(_rounded, half))
                scales = range(1, schedule.num_scales)
                stack.enter_context(editing_state(mixer, scales, lambda state, scale, edit=rounded: edit(state)))
        yield


def _rounded(half: torch.dtype, t: Tensor) -> Tensor:
    return t.to(half).to(t.dtype) if t.is_floating_point() else t


def _recent(
    forward: Callable[..., tuple[Tensor, Any]], keep: int, x: Tensor, span: Span, state: Sequence[Tensor] | None = None
) -> tuple[Tensor, list[Tensor] | None]:
    """A mixer's forward that begins anew `keep` - 1 scales before each; its state are the inputs of these."""
    before, outputs = list(state or ()), []
    for scale, tokens in zip(span.scales, x.split([span.schedule.lengths[s] for s in span.scales], 1), strict=True):
        known = [*before, tokens][-keep:]
        seen = span.schedule.span(scale + 1 - len(known), scale + 1)
        y, _ = forward(torch.cat(known, 1), seen, _nothing_left(forward, x, seen))
        outputs.append(y[:, -tokens.shape[1] :])
        before = known[len(known) - min(len(known), keep - 1) :]
    return torch.cat(outputs, 1), None if span.is_last else before


def _nothing_left(forward: Callable[..., tuple[Tensor, Any]], x: Tensor, span: Span) -> Any:
    """The state of a mixer before a span, where nothing has been seen."""
    if not span.first:
        return None
    before = span.schedule.span(0, span.first)
    return emptied(forward(x.new_zeros(len(x), before.length, x.shape[2]), before, None)[1])


def bytes_kept(model: ScaleTransformer, keep: int) -> int:
    """Bytes of one image in all layers: with fewer scales than all, keys and values, or a new state, of that many.

    A mixer with a state carries either a state for each of the `keep` - 1 scales or these scales' inputs, whichever is
    less; what a mixer needs anyway is the most.
    """
    schedule, config, size = model.schedule, model.config, next(model.parameters()).element_size()
    inputs = sum(schedule.lengths[-keep:-1]) * config.width * size
    total = 0
    for _, _, mixer in mixers_of_model(model):
        whole = mixer.state_bytes(config, mixer.settings, schedule, size)
        if keep < schedule.num_scales and whole and "keys" in mixer.cuts:
            whole = min(whole, 2 * inputs)
        elif keep < schedule.num_scales and "state" in mixer.cuts:
            whole = min((keep - 1) * whole, inputs)
        total += whole
    return total
