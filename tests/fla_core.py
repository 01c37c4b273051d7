"""Plain torch functions of fla-core (flash-linear-attention), the reference of gated linear mixers."""

from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def reference(folder: str, name: str) -> Callable[..., Any]:
    """One of `fla.ops.FOLDER.naive`, by its file: the package around it wants Triton and a GPU."""
    found = find_spec("fla")
    assert found and found.submodule_search_locations, "fla-core is not installed; allowed: make .venv/dev"
    path = Path(found.submodule_search_locations[0]) / "ops" / folder / "naive.py"
    spec = spec_from_file_location(f"naive_{folder}", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
