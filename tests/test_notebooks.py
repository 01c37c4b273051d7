"""Notebooks: outputs are stored small, each runs from top to bottom, and where the demo's runs are gives those numbers.

`MVAR_DEMO_RESULTS=results pytest -m slow tests/test_notebooks.py` compares the numbers, after `make demo`.
"""

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_attention_maps", "02_ablation_explorer", "03_sampling"]


def read(path):
    return nbformat.read(path, as_version=4)


def test_they_are_all_there():
    assert [path.stem for path in NOTEBOOKS] == NAMES


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell shows, without what a page of notebooks cannot show: a widget."""
    shown = [output for output in cell.outputs if output.output_type in ("display_data", "execute_result")]
    return [sorted(kind for kind in output.data if "widget" not in kind) for output in shown]


def sentences(cell):
    return " ".join(output.data.get("text/markdown", "") for output in cell.outputs if "data" in output)


NUMBER = re.compile(r"(?<![\w.#-])-?\d+(?:\.\d+)?")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_there_and_small(path):
    notebook, text = read(path), path.read_text()
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    shown = [kind for cell in cells for output in kinds(cell) for kind in output]
    assert shown.count("image/png") >= 4 and shown.count("text/markdown") >= 4
    assert len(text) < 500_000 and "widget-view" not in text and "widgets" not in notebook.metadata
    assert not re.search(r"/(tmp|home|root|work)/", text)
    assert "CHOSEN = dict(" in cells[0].source  # what chooses other runs or images


def test_a_number_that_differs_is_found():
    assert close_numbers("**12.5%** of 30", "**12.6%** of 30") and not close_numbers("12.5% of 30", "17.5% of 30")
    assert not close_numbers("12.5% of 30", "12.5%")


def close_numbers(stored, found):
    """Whether two texts have the same numbers, to 5 % of each or 0.02 (a share in percent: 2)."""
    a, b = ([float(number) for number in NUMBER.findall(text)] for text in (stored, found))
    slack = 2.0 if "%" in stored else 0.02
    return len(a) == len(b) and all(abs(x - y) <= max(slack, 0.05 * abs(x)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_they_are_thin(path):
    """What is worth a test lives in the packages."""
    lines = [line for cell in read(path).cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert len(lines) < 150
    assert not any(line.startswith(("class ", "!", "%pip")) for line in lines)


@pytest.fixture
def results(tmp_path_factory, worker_id):
    """One results directory for all notebooks, whichever process of the test run has them."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "notebook-results"


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first one trains the smoke preset, beside all other tests
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_they_run(path, results, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    demo = os.environ.get("MVAR_DEMO_RESULTS")
    monkeypatch.setenv("MVAR_RESULTS", str(Path(demo).resolve() if demo else results))
    stored = code_cells(read(path))
    notebook = read(path)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute()  # raises where a cell does
    found = code_cells(notebook)
    assert [kinds(cell) for cell in found] == [kinds(cell) for cell in stored]
    assert "nan" not in " ".join(map(sentences, found))
    if demo:
        for before, after in zip(stored, found, strict=True):
            assert close_numbers(sentences(before), sentences(after)), sentences(after)
    assert (demo or (results / "runs").is_dir()) and not list(path.parent.glob("results"))
