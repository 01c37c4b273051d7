"""Every example, by the commands of its own docstring, from outside the repository and against an installed wheel."""

import ast
import json
import shlex
import shutil
from pathlib import Path

import installed_wheel
import pytest
import tiny_runs
import torch
from dino import dino_state

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAKE = ("run", "submit")  # commands whose runs are made tiny here
TINY = [f"{name}={value}" for name, value in tiny_runs.TINY.items()]


def commands(path: Path) -> list[list[str]]:
    """The lines of a file's docstring that are commands."""
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("mvar ")]


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return installed_wheel.Installed(installed_wheel.build(folder), folder)


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    """A folder of a user's, to which the examples were copied; one for all, so that what they share is made once."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def _some_run(here: Path) -> str:
    return sorted(path.name for path in here.glob("results/runs/*"))[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_used(path):
    assert 20 <= len(path.read_text().splitlines()) <= 60
    assert commands(path) and f"`{path.name}`" in (ROOT / "examples/README.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_does_what_it_says(path, installed, here):
    if path.stem == "extractor":
        torch.save(dino_state()[0], here / "s14.pth")
    for words in commands(path):
        words = [_some_run(here) if word == "RUN" else word for word in words]
        tiny = ["--set", *TINY] if words[0] in MAKE else []
        said = installed.mvar(here, *words, *tiny)
        if words[0] in MAKE:
            assert "runs done in results" in said, said
    recorded = [json.loads(record.read_text())["plugins"] for record in here.glob("results/runs/*/plugins.json")]
    used = {plugin["name"] for plugins in recorded for plugin in plugins}
    assert path.stem in used or path.stem in (
        "sweep",
        "executor",
        "metric",
        "extractor",
    )  # these train nothing of their own
    if path.stem == "sweep":
        assert list(here.glob("results/report/figures/heads-*.png"))
    loaded = [file for process in installed.processes() for file in process["files"]]
    assert not [file for file in loaded if file.startswith(str(ROOT / "mvar"))]  # the wheel's code alone
