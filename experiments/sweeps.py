"""The sweeps by name: what `mvar run NAME` accepts. A new one is one module with a `SWEEP` and one entry here."""

from experiments import layers, mixers, parameters, rejection, scaling
from mvar.errors import one_of
from mvar.runs.request import Sweep

MODULES = (mixers, layers, parameters, rejection, scaling)
SWEEPS: dict[str, Sweep] = {module.SWEEP.name: module.SWEEP for module in MODULES}


def find_sweep(name: str) -> Sweep:
    """The sweep of a name; an unknown one is a `UserError` that lists the names."""
    if name not in SWEEPS:
        raise one_of("sweep", name, SWEEPS)
    return SWEEPS[name]
