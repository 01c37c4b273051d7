"""A results directory with one finished run, to copy from."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from digest_clock import Clock, watched
from tiny_runs import CONFIG

from mvar.runs.pipeline import execute
from mvar.runs.states import DONE
from mvar.runs.store import Store


@dataclass(frozen=True)
class Making:
    """Results with one finished run, and so with all shared stages; what making them took."""

    root: Path
    seconds: float
    digests: Clock


@pytest.fixture(scope="session")
def making(tmp_path_factory) -> Making:
    """The results that others copy, made under a clock."""
    root, began = tmp_path_factory.mktemp("made"), time.perf_counter()
    with watched() as digests:
        assert execute(CONFIG, Store(root)) == DONE
    return Making(root, time.perf_counter() - began, digests)


@pytest.fixture(scope="session")
def made(making) -> Path:
    """Results with one finished run, and so with all shared stages."""
    return making.root


@pytest.fixture
def store(made, tmp_path) -> Store:
    """A copy of them."""
    shutil.copytree(made, tmp_path / "results")
    return Store(tmp_path / "results")
