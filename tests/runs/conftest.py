"""A results directory with one finished run, to copy from."""

import shutil
from pathlib import Path

import pytest
from tiny_runs import CONFIG

from mvar.runs.pipeline import execute
from mvar.runs.states import DONE
from mvar.runs.store import Store


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Results with one finished run, and so with all shared stages."""
    root = tmp_path_factory.mktemp("made")
    assert execute(CONFIG, Store(root)) == DONE
    return root


@pytest.fixture
def store(made, tmp_path) -> Store:
    """A copy of them."""
    shutil.copytree(made, tmp_path / "results")
    return Store(tmp_path / "results")
