"""Notebooks: nothing that was run is stored in them, and each runs from top to bottom on runs that it trains itself."""

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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stripped(path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


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
    monkeypatch.setenv("MVAR_RESULTS", str(results))
    notebook = read(path)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute()  # raises where a cell does
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") >= 4
    assert kinds.count("text/markdown") >= 4  # sentences made of numbers
    assert "nan" not in " ".join(output["data"].get("text/markdown", "") for output in outputs if "data" in output)
    assert (results / "runs").is_dir() and not list(path.parent.glob("results"))
