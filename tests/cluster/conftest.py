"""A real SLURM for the session, and the results of a run that no cluster has touched."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvar.runs.pipeline import execute
from mvar.runs.states import DONE
from mvar.runs.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from slurm_jobs import CONFIG, Slurm


@contextmanager
def boot(*options: str, needed: Sequence[str], packages: str) -> Iterator[Slurm]:
    """A cluster of its own; skips where it cannot be, unless that is a failure."""
    lacking = [name for name in needed if shutil.which(name) is None]
    why = f"{', '.join(lacking)} not installed: apt-get install {packages}" if lacking else ""
    why = why or ("needs root" if os.getuid() else "")
    if why:
        (pytest.fail if os.environ.get("REQUIRE_SLURM") else pytest.skip)(f"no SLURM: {why}")
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")) / "c"  # short: unix sockets have 108 bytes
    command = [sys.executable, str(Path(__file__).with_name("slurm_cluster.py")), str(root), *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
    try:
        assert holder.stdout.readline() == "ready\n"
        yield Slurm(root, holder)
    finally:
        holder.stdin.close()  # it tears down; also where this process is killed
        holder.wait(30)
        shutil.rmtree(root.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def booted() -> Iterator[Slurm]:
    with boot(needed=("slurmctld", "slurmd", "munged", "sbatch"), packages="slurm-wlm munge") as cluster:
        yield cluster


@pytest.fixture
def slurm(booted, monkeypatch) -> Iterator[Slurm]:
    """The cluster, idle, with this process's environment pointing to it."""
    with entered(booted, monkeypatch):
        yield booted


@contextmanager
def entered(booted: Slurm, monkeypatch) -> Iterator[None]:
    """This process's environment points to the cluster; what it is left with is put in order."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(booted.root / "slurm.conf"))
    yield
    booted.restore()
    subprocess.run(["scancel", "--full", "-u", "root"], check=False)


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """Results of the run that no cluster has touched."""
    root = tmp_path_factory.mktemp("reference")
    assert execute(CONFIG, Store(root)) == DONE
    return root


@pytest.fixture
def store(reference, tmp_path) -> Store:
    """Results with the shared stages and no run."""
    shutil.copytree(reference / "stages", tmp_path / "results" / "stages")
    return Store(tmp_path / "results")
