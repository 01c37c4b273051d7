"""The house: imports go one way, files and functions stay small, importing the library needs nothing optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mvar", "experiments")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))

# Low to high: a module imports its own layer and those below.
LAYERS = (
    (
        "mvar.errors",
        "mvar.escaping",
        "mvar.files",
        "mvar.memory",
        "mvar.progress",
        "mvar.rows",
        "mvar.artefacts",
        "mvar.scales",
        "mvar.pattern",
        "mvar.config",
        "mvar.presets",
    ),
    ("mvar.kernels",),
    ("mvar.mixers",),
    ("mvar.transformer", "mvar.cost", "mvar.tokenizer"),
    ("mvar.checkpoints",),
    ("mvar.sampling", "mvar.data"),
    ("mvar.training",),
    ("mvar.evaluation", "mvar.probes"),
    ("mvar.runs", "experiments"),
    ("mvar.cluster", "mvar.analysis"),
    ("mvar.commands",),
    ("mvar.cli",),
)


def layer_of(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return None


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module in PACKAGES:
        assert not imports_of(path)
        return
    own = layer_of(module)
    assert own is not None, f"{module} is in no layer"
    for name in imports_of(path):
        other = layer_of(name)
        assert other is None or other <= own, f"{module} imports {name} from above"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert path.name not in ("utils.py", "helpers.py", "misc.py")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 65, f"{node.name} is too long"


def test_importing_the_library_needs_nothing_optional():
    heavy = ["mamba_ssm", "flash_attn", "causal_conv1d", "torch_fidelity", "sklearn", "tensorboard", "submitit"]
    code = f"""
import importlib, pkgutil, sys
for name in {heavy!r}: sys.modules[name] = None  # any import of it now fails
import mvar
for module in pkgutil.walk_packages(mvar.__path__, 'mvar.'): importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
