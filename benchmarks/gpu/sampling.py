"""Seconds of a batch of images, ours and the official code's, with the same settings of sampling and random weights.

The image decoder is left out on both sides. The official code runs under autocast, as its README does, with what it
needs of flash-attn and mamba-ssm where these are installed, and torch in their place where not
(`benchmarks.official`); compiled: each of its layers by torch.compile's `reduce-overhead`, which is its `--tfast=1`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import official as beside
from benchmarks.gpu.replay import graphs, models, ways
from benchmarks.gpu.settings import HALF, PATTERNS, Settings, timed
from mvar.errors import UserError
from mvar.scales import PATCH_SIDES

# Without a GPU the graphs run as they were recorded: C++ for each shape takes minutes, and its times mean nothing.
COMPILED: dict[str, Any] = {"cuda": {"mode": "reduce-overhead"}, "cpu": {"backend": "eager"}}
AIMS = {("M-VAR", 1): 3.0, ("M-VAR", 64): 1.5}  # times the official code, compiled


def rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row a model and size of a batch; None where nothing was measured."""
    for name in PATTERNS:
        theirs = officials(settings, name)
        model, quantizer = models(settings, name)
        for size in settings.batches:
            recorded = graphs(settings)
            own = ways(settings, model, quantizer, size, recorded)
            taken: dict[str, float | None] = {**timed(settings, own)}
            said = {}
            for what in ("official", "official, compiled"):
                try:
                    run = theirs[what]
                    taken[what] = timed(settings, {what: lambda r=run, n=size: r(n)})[what]
                except KeyError:
                    taken[what] = None
                except Exception as error:  # of code that is not ours: the other rows stay
                    taken[what], said["said"] = None, f"{what}: {type(error).__name__}: {error}".splitlines()[0]
            best = min(value for what in own if (value := taken[what]))
            peer = taken["official, compiled"] or taken["official"]
            yield (
                {"model": name, "batch": size}
                | {f"{what}_s": value for what, value in taken.items()}
                | {
                    "images_per_s": size / best,
                    # a rehearsal's sizes are not the same on both sides
                    "times_the_official": None if settings.tiny else peer and peer / best,
                    "aim": AIMS.get((name, size)),
                }
                | said
            )


def checkouts(settings: Settings) -> dict[str, Path]:
    """The folders of the official code, by model.

    Raises:
        UserError: one that holds no such code; that of M-VAR alone.
    """
    if settings.official is None:
        if settings.official_mvar:
            raise UserError("official-mvar: given without --official; allowed: both, or that of VAR alone")
        return {}
    return beside.check(beside.Settings(settings.official, settings.official_mvar))


def officials(settings: Settings, name: str) -> dict[str, Callable[[int], Any]]:
    """What draws so many images by the official code; nothing without a checkout."""
    folder, model = checkouts(settings).get(name), settings.config(name).model
    if folder is None:
        return {}
    sides = settings.config(name).tokenizer.patch_sides
    resolution = next((text for text, found in PATCH_SIDES.items() if found == sides), "digits")  # of a rehearsal
    size = beside.Settings(folder, depth=model.depth, width=model.width, resolution=resolution)
    plain, compiled = (_official(settings, name, folder, size, is_compiled) for is_compiled in (False, True))
    return {"official": plain, "official, compiled": compiled}


def _official(
    settings: Settings, name: str, folder: Path, size: beside.Settings, is_compiled: bool
) -> Callable[[int], Any]:
    model: Any = beside.official(size, name, folder).to(settings.device).eval()
    if is_compiled:
        for block in model.blocks:
            block.compile(**COMPILED[settings.device.type])
    half = HALF.get(settings.precision)
    sample = settings.config(name).sample

    def run(count: int) -> None:
        labels = torch.arange(count, device=settings.device) % beside.CLASSES
        how = {"cfg": sample.cfg_scale, "top_k": sample.top_k, "top_p": sample.top_p}
        with torch.inference_mode(), torch.autocast(settings.device.type, half, enabled=half is not None):
            model.autoregressive_infer_cfg(count, labels, g_seed=0, **how)

    return run
