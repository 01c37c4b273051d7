"""`mvar doctor` on which `mvar` this is: the distribution's name, and others of the package's name."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from mvar import shipped
from mvar.cluster import doctor
from mvar.cluster.doctor import DISTRIBUTION, installation

ROOT = Path(__file__).parents[2]


def others(paths: list[str]) -> list[tuple[str, str]]:
    return [(finding.state, finding.found) for finding in installation(paths) if finding.what == "another mvar"]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No other distribution, and nothing of the name in the working directory."""
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"mvar": [DISTRIBUTION]})
    monkeypatch.chdir(tmp_path)


def test_the_distribution_is_called_as_doctor_says():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == DISTRIBUTION == "mvar-harness"


def test_nothing_advises_to_install_what_is_somebody_elses():
    texts = [
        *(ROOT / "mvar").rglob("*.py"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
    ]
    for path in texts:
        for line in path.read_text().splitlines():
            assert "pip install mvar " not in f"{line} " and "'mvar[" not in line, path


@pytest.mark.parametrize("name", ["mvar/__init__.py", "mvar.py"])
def test_a_package_of_the_name_in_front(tmp_path, name):
    other = tmp_path / "other"
    (other / name).parent.mkdir(parents=True)
    (other / name).touch()
    behind = [str(shipped.PACKAGE.parent), str(other)]
    assert others(behind) == [] and others([]) == []
    ((state, found),) = others([str(other), *behind])
    assert state == "broken" and found.startswith(f"{other / name} ")


def test_a_package_of_the_name_in_the_working_directory(tmp_path):
    (tmp_path / "mvar.py").touch()
    ((state, found),) = others([str(shipped.PACKAGE.parent)])
    assert state == "missing" and str(tmp_path / "mvar.py") in found


@pytest.mark.parametrize("is_old", [True, False])
def test_another_distribution_with_the_package(monkeypatch, tmp_path, is_old):
    """One of the package index; or this checkout's, installed before its distribution had another name."""
    info = tmp_path / "site" / "mvar-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: mvar\nVersion: 0.1.0\n")
    if is_old:
        (info / "direct_url.json").write_text(f'{{"url": "{ROOT.as_uri()}", "dir_info": {{"editable": true}}}}')
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"mvar": [DISTRIBUTION, "mvar"]})
    monkeypatch.setattr(metadata, "distribution", lambda name: metadata.PathDistribution(info))
    (finding,) = (finding for finding in installation([]) if finding.what == "another mvar")
    assert finding.state == ("missing" if is_old else "broken") and finding.advice.startswith("pip uninstall mvar")


def test_kernels_are_installed_by_the_names_of_this_distribution(monkeypatch):
    monkeypatch.setattr(doctor.shipped, "repository", lambda: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    advice = {found.what: found.advice for found in doctor._kernels()}
    assert advice["fla"].endswith("with a GPU: pip install 'mvar-harness[fla]'")
    assert advice["mamba_ssm"].endswith("pip install 'mvar-harness[mamba]' --no-build-isolation")
