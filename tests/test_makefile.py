"""How `make` gets its environment: whatever an interrupt leaves there, the next call ends in a whole one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Stand-ins: `python -m venv DIR` makes a directory, pip writes down what it is asked for and dies when it is told to.
PIP = """#!/bin/sh
case "$*" in *uv) exit 1;; --version) exit 0;; esac
touch "$(dirname "$0")/../half"
test -z "$STOP" || { kill -INT "$PPID"; exit 130; }
echo "$*" >> "$(dirname "$0")/../installed"
"""
PYTHON = f"""#!/bin/sh
mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" "$3/bin/python"
test -z "$WITHOUT_PIP" || kill -KILL "$PPID"
cat > "$3/bin/pip" <<'END'
{PIP}END
chmod +x "$3/bin/python" "$3/bin/pip"
"""


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_the_demo_has_other_sweeps_and_presets():
    for given, asked in (
        ([], "mixers layers parameters --preset digits --sample-seeds 3 "),
        (["PRESET=fashion32-small", "SWEEPS=mixers"], "mixers --preset fashion32-small --sample-seeds 1 "),
    ):
        printed = subprocess.run(["make", "-n", "demo", *given], cwd=ROOT, capture_output=True, text=True).stdout
        assert f"mvar run {asked}" in printed


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(("given", "kept"), [({}, "results"), ({"MVAR_RESULTS": "/elsewhere"}, "/elsewhere")])
def test_results_are_where_every_command_looks(given, kept):
    bare = {name: value for name, value in os.environ.items() if name != "MVAR_RESULTS"}
    for target in ("demo", "notebooks"):
        command = ["make", "-n", target]
        printed = subprocess.run(command, cwd=ROOT, env=bare | given, capture_output=True, text=True).stdout
        assert f"--results {kept}\n" in printed


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_what_a_gpu_shows_is_beside_the_checkouts_that_are_named():
    for given, asked in (
        ([], []),
        (
            ["OFFICIAL=a", "OFFICIAL_MVAR=b", "GPU_OPTIONS=--tiny"],
            ["--official", "a", "--official-mvar", "b", "--tiny"],
        ),
    ):
        printed = subprocess.run(
            ["make", "--no-print-directory", "-n", "gpu", *given], cwd=ROOT, capture_output=True, text=True
        ).stdout
        command = printed.replace("\\\n", " ").split("-m benchmarks.gpu")[1]
        assert command.split() == asked


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_notebooks_open_on_the_demos_runs():
    printed = subprocess.run(["make", "-n", "notebooks", "RESULTS=r"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "mvar run mixers --preset digits --results r" in printed and ".[notebooks]" in printed
    assert f"MVAR_RESULTS={ROOT}/r .venv/bin/jupyter lab notebooks" in printed


@pytest.fixture
def make(tmp_path):
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def run(*arguments, **environment):
        outer = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        command = ["make", f"PYTHON={python}", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=outer | environment, capture_output=True, text=True)

    return run


def test_the_environment_is_made_once(make, tmp_path):
    venv = tmp_path / ".venv"
    assert make(".venv/dev").returncode == 0
    asked = (venv / "installed").read_text()
    assert ".[dev]" in asked and "-c constraints.txt" in asked
    assert make(".venv/dev", ".venv/core").returncode == 0
    assert (venv / "installed").read_text() == asked
    assert not (venv / "unfinished").exists()


def test_the_cpu_build_of_pytorch_comes_first_and_alone(make, tmp_path):
    assert make(".venv/core", "TORCH=cpu").returncode == 0
    first, second = (tmp_path / ".venv/installed").read_text().splitlines()
    words = first.split()
    assert words[words.index("--index-url") + 1] == "https://download.pytorch.org/whl/cpu"
    assert words[-2:] == ["torch", "torchvision"] and "--no-deps" in words and "constraints.txt" in words
    assert second.endswith("-e .") and "--index-url" not in second
    assert make("other/core", "VENV=other", "TORCH=cpu", "TORCH_INDEX=file:///mirror").returncode == 0
    assert "--index-url file:///mirror torch" in (tmp_path / "other/installed").read_text()


@pytest.mark.parametrize("stop", ["WITHOUT_PIP", "STOP"])
def test_an_interrupted_environment_is_made_anew(make, tmp_path, stop):
    venv = tmp_path / ".venv"
    assert make(".venv/core", **{stop: "yes"}).returncode != 0
    assert (venv / "pyvenv.cfg").exists() and not (venv / "core").exists()
    left = venv / "left"
    left.touch()
    done = make(".venv/core")
    assert done.returncode == 0, done.stderr
    assert (venv / "installed").exists() and (venv / "core").exists()
    assert not left.exists()


def test_an_environment_without_pip_gets_it(make, tmp_path):
    """As an interrupt between python and pip left it before `unfinished` was written; or as uv makes one."""
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    (venv / "kept").touch()
    assert make(".venv/core").returncode == 0
    assert (venv / "installed").exists() and (venv / "kept").exists()


def test_an_interrupted_change_is_made_again_for_every_command(make, tmp_path):
    assert make(".venv/core").returncode == 0
    assert make(".venv/dev", STOP="yes").returncode != 0
    assert make(".venv/core").returncode == 0
    assert "-e .\n" in (tmp_path / ".venv/installed").read_text()


def test_the_environment_may_be_elsewhere_but_takes_no_directory_of_others(make, tmp_path):
    assert make("other/core", "VENV=other").returncode == 0
    assert (tmp_path / "other/installed").exists() and not (tmp_path / ".venv").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").touch()
    done = make("mine/core", "VENV=mine")
    assert done.returncode != 0 and "VENV=mine holds something else" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter"]
