"""What is installed is whole: the files beside the code are in the packages, and the code finds them there."""

import tomllib
from importlib.resources import files
from pathlib import Path, PurePath

import pytest

from mvar.analysis.page import TEMPLATE
from mvar.runs.experiment import paper_rows

ROOT = Path(__file__).parents[1]
PACKAGES = ("mvar", "experiments")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_is_packaged(package):
    assert f"{package}*" in SETUPTOOLS["packages"]["find"]["include"]
    patterns = SETUPTOOLS["package-data"].get(package, [])
    for path in (ROOT / package).rglob("*"):
        name = path.relative_to(ROOT / package)
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in name.parts:
            assert any(PurePath(name).match(pattern) for pattern in patterns), f"{package}/{name} is in no package"


def test_every_folder_with_code_is_a_package():
    for path in (p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        assert (path.parent / "__init__.py").is_file(), path


def test_packaged_files_are_found():
    assert (files("mvar.analysis") / TEMPLATE).is_file()
    tables = [path.name for path in (files("experiments") / "paper").iterdir()]
    assert len(tables) >= 8
    for name in tables:
        assert paper_rows(name.removesuffix(".csv"))
