"""What is installed is whole: the files beside the code, and a copy of those that users edit, and it is found there."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.resources import files
from pathlib import Path, PurePath

import pytest

from mvar import shipped
from mvar.analysis.page import TEMPLATE
from mvar.errors import UserError
from mvar.runs.experiment import experiment_names, find_experiment, paper_rows

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_file_is_packaged():
    assert SETUPTOOLS["packages"]["find"]["include"] == ["mvar*"]  # nothing else is importable
    patterns = SETUPTOOLS["package-data"]["mvar"]
    for path in (ROOT / "mvar").rglob("*"):
        name = path.relative_to(ROOT / "mvar")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in name.parts:
            assert any(PurePath(name).match(pattern) for pattern in patterns), f"mvar/{name} is in no package"


def test_every_folder_with_code_is_a_package():
    for path in (ROOT / "mvar").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path


def test_packaged_files_are_found():
    assert (files("mvar.analysis") / TEMPLATE).is_file()
    tables = sorted((shipped.folder("experiments") / "paper").iterdir())
    assert len(tables) >= 8
    for path in tables:
        assert paper_rows(path.stem)


def test_a_file_is_found_by_name_or_path_and_never_in_the_working_directory(tmp_path, monkeypatch):
    own = tmp_path / "experiments"
    own.mkdir()
    (own / "mixers.py").write_text("raise RuntimeError('a stranger')\n")
    (tmp_path / "mixers.py").write_text("raise RuntimeError('a stranger')\n")
    monkeypatch.chdir(tmp_path)
    assert find_experiment("mixers").artefact == "Table 6"
    with pytest.raises(UserError, match=r"experiments/mixers.py: cannot be loaded \(RuntimeError: a stranger\)"):
        find_experiment("experiments/mixers.py")
    with pytest.raises(UserError, match=r"no file '\./layers\.py'"):
        find_experiment("./layers.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty.py: has no EXPERIMENT"):
        find_experiment("empty.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # what git has: a build leaves files behind
    source.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    for name in names or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if ".venv" not in p.parts]:
        if name and not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True)
    (found,) = folder.glob("*.whl")
    return found


def test_a_wheel_has_the_package_and_a_copy_of_what_users_edit(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"mvar"}
    for kind in shipped.KINDS:
        here = {
            str(p.relative_to(ROOT)) for p in shipped.folder(kind).rglob("*") if p.suffix in {".py", ".csv", ".toml"}
        }
        assert {f"mvar/_shipped/{name}" for name in here} <= set(names), kind


def test_a_wheel_beside_a_users_own_folders_of_these_names(wheel, tmp_path):
    """Its dependencies are those of this environment; the package is the wheel's alone."""
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    site = next(home.glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    ours = [p for p in sys.path if p.endswith("site-packages")]
    (site / "below.pth").write_text("\n".join(ours))
    for name in ("experiments", "analysis", "slurm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f"raise RuntimeError('the user's own {name}')\n".replace("r's", "rs")
        )
    for name in ("mixers.py", "layers.py"):
        (tmp_path / "experiments" / name).write_text("raise RuntimeError('a stranger')\n")

    def mvar(*words: str) -> str:
        done = subprocess.run(
            [home / "bin/python", "-m", "mvar.cli", *words],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "7 runs" in mvar("run", "mixers", "layers", "--preset", "smoke", "--dry-run")
    copied = mvar("copy", "experiments/mixers.py", "mine.py")
    assert "mine.py" in copied and (tmp_path / "mine.py").read_bytes() == (ROOT / "experiments/mixers.py").read_bytes()
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text().replace('name="mixers"', 'name="mine"'))
    assert "4 runs" in mvar("run", "./mine.py", "--preset", "smoke", "--dry-run")


def test_experiments_are_short_and_in_order():
    assert experiment_names() == ["mixers", "layers", "parameters", "rejection", "scaling"]
    for name in experiment_names():
        assert len(shipped.find("experiments", name).read_text().splitlines()) < 100
