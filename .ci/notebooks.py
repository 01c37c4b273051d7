#!/usr/bin/env python3
"""Runs the notebooks on the demo's runs and stores what they show, small: `.venv/bin/python .ci/notebooks.py results`.

State of widgets is left out (a page of notebooks shows the figure beside it), pictures have at most 128 colours.
"""

import os
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> None:
    """Run one and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, store_widget_state=False, resources=resources).execute()
    store(notebook, path)


def store(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook without what changes from run to run."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop(WIDGET, None)
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])
            if "metadata" in output:
                output["metadata"] = {}
    path.write_text(nbformat.writes(notebook) + "\n")
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def smaller(text: str) -> str:
    """A picture of at most 128 colours."""
    file = BytesIO()
    picture = Image.open(BytesIO(b64decode(text))).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    os.environ["MVAR_RESULTS"] = str(Path(sys.argv[1]).resolve())
    for path in NOTEBOOKS:
        run(path)
