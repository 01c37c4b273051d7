"""What was asked for, from what is there: the configs of every manifest, of a run, and a damaged manifest's request."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvar.config import RunConfig, from_dict, override
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.runs.config_file import differences
from mvar.runs.experiment import BUDGET, STEPS, experiments
from mvar.runs.grid import experiment_of
from mvar.runs.request import Request
from mvar.runs.store import RunDirectory, Store


def requested(store: Store) -> list[RunConfig]:
    """The config of every run and evaluation that the manifests ask for."""
    configs: list[RunConfig] = []
    for manifest in store.manifests():
        with suppress(UserError, KeyError):  # of a sweep or preset that is no more
            budget = manifest["budget_flops"] if manifest["mode"] == BUDGET else None
            seeds, sample_seeds = manifest.get("seeds", [0]), manifest.get("sample_seeds", ())
            config = override(PRESETS[manifest["preset"]], manifest["overrides"])
            sweep = experiment_of(manifest)
            overrides, mode = manifest["overrides"], manifest["mode"]
            request = Request(
                sweep, manifest["preset"], config, tuple(seeds), overrides, mode, budget, tuple(sample_seeds)
            )
            configs += map(store.as_stored, request.configs())
    return configs


def config_of(run: RunDirectory, asked: list[RunConfig]) -> RunConfig | None:
    """The config of a run: as stored, else as in the header of its weights, else as a manifest has asked for it."""
    from safetensors import SafetensorError, safe_open

    from mvar.checkpoints.weights import METADATA, parse_metadata

    with suppress(UserError):
        return run.stored().config
    with suppress(UserError, OSError, ValueError, SafetensorError, TypeError, KeyError):
        with safe_open(run.weights, framework="pt") as file:
            values = parse_metadata((file.metadata() or {})[METADATA])["config"]
        return from_dict(
            RunConfig, {name: v for name, v in values.items() if name in RunConfig.model_fields}, lenient=True
        )
    return next((config for config in asked if config.run_id == run.name), None)


def request_of(store: Store, path: Path) -> Request | None:
    """The request of a damaged manifest, from its name and the runs that are there; None where none fits.

    The name has a digest of the settings, so what fits is what was asked for; seeds are those of the runs.
    """
    for sweep, preset, mode in _named(path.stem):
        base = PRESETS[preset]
        for config in (base, *_bases(store, base)):
            overrides = _differences(base, config)
            request = Request(sweep, preset, config, (0,), overrides, mode)
            if request.name == path.stem:
                return _with_seeds(store, request)
    return None


def _named(stem: str) -> Iterator[tuple[Any, str, str]]:
    for sweep in experiments():
        for preset in PRESETS:
            for mode in (STEPS, BUDGET):
                if f"{stem}-".startswith(f"{sweep.name}-{preset}-{mode}-"):
                    yield sweep, preset, mode


def _bases(store: Store, base: RunConfig) -> Iterator[RunConfig]:
    """What requests may have started from that have led to the runs that are there."""
    for run in store.runs():
        with suppress(UserError):
            found = run.stored().config
            model = found.model.model_copy(update={"pattern": base.model.pattern})
            yield found.model_copy(update={"seed": base.seed, "model": model})


def _differences(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The fields, dotted, that differ."""
    return {name: value for name, value in differences(base, config).items() if name not in ("seed", "sample.seed")}


def _with_seeds(store: Store, request: Request) -> Request:
    """The request with the seeds, of training and of sampling, of the runs that are there."""
    seeds, sample_seeds = {request.config.seed}, {request.config.sample.seed}
    for run in store.runs():
        with suppress(UserError):
            config = run.stored().config
            if any(override(cell.config, {"seed": config.seed}).key == config.key for cell in request.cells()):
                seeds.add(config.seed)
                found = (record.get("sample", {}).get("seed") for record in run.evaluations().values())
                sample_seeds |= {seed for seed in found if type(seed) is int}
    return replace(request, seeds=tuple(sorted(seeds)), sample_seeds=tuple(sorted(sample_seeds)))
