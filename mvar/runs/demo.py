"""Runs to look at: those of the demo, or else those of the smoke preset, trained on the spot."""

import os
from pathlib import Path

from mvar import shipped
from mvar.config import RunConfig
from mvar.errors import UserError
from mvar.place import VARIABLE
from mvar.presets import PRESETS
from mvar.runs.experiment import find_experiment
from mvar.runs.request import Request, write_manifest
from mvar.runs.store import Store

RESULTS = (shipped.repository() or Path()) / "results"  # installed: as `mvar` has it


def demo_runs(results: Path | str | None = None) -> tuple[Store, dict[str, RunConfig]]:
    """Finished runs of the sweep `mixers`, by layer pattern: `global`, `intra`, `mamba`, `intra+mamba`.

    Args:
        results: where runs are kept; None: `$MVAR_RESULTS`, or the repository's own `results/` (the current
            directory's, where the package was installed without it).

    Returns:
        The store, and the configs of the digits preset's runs if they are all there (`make demo`); else of the smoke
        preset's, which are trained now: half a minute, once.

    Raises:
        UserError: a run that could not be made; says why.
    """
    store = Store(results or os.environ.get(VARIABLE) or RESULTS)
    requests = {preset: Request(find_experiment("mixers"), preset, PRESETS[preset]) for preset in ("digits", "smoke")}
    request = next((r for r in requests.values() if all(map(store.is_done, r.configs()))), None)
    if request is None:
        from mvar.runs.runner import run_all

        request = requests["smoke"]
        write_manifest(store, request, ["run", "mixers", "--preset", "smoke"])
        summary = run_all(request.configs(), store)
        if complaints := summary.complaints():
            raise UserError("; ".join(complaints))
    return store, {config.model.pattern: config for config in request.configs()}
