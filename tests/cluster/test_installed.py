"""A wheel that submits: the job runs the wheel's code as it was then, whatever lies where it was submitted from."""

import json
import zipfile
from pathlib import Path

import installed_wheel
import pytest
from slurm_jobs import TINY, ask, until

from mvar.cluster import snapshot
from mvar.runs.states import DONE
from mvar.runs.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
SETTINGS = [f"{name}={value}" for name, value in (TINY | {"train.steps": 5}).items()]
JOBS = ["cpus_per_task=1", "mem_gb=4", "timeout_min=60"]
ONE = """
import mvar
from mvar.mixers.global_attention import GlobalAttention


@mvar.register("mixer", "again")
class Again(GlobalAttention):
    pass


def cells(config):
    return [mvar.Cell("again", mvar.override(config, {"model.pattern": "again"}))]


EXPERIMENT = mvar.Experiment("one", "an own table", "one run", cells)
"""


def files_below(folder: Path) -> set[str]:
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(path.relative_to(folder)) for path in found}


def test_a_wheel_submits_from_a_folder_with_a_users_own_folders(slurm, tmp_path):
    """The profile `cpu` and the code are the wheel's; the experiment and its mixer are a file of the user's."""
    wheel = installed_wheel.build(tmp_path)
    installed = installed_wheel.Installed(wheel, tmp_path)
    here = tmp_path / "work"
    installed_wheel.strangers(here)
    (here / "one.py").write_text(ONE)
    grid = ("./one.py", "--preset", "smoke", "--set", *SETTINGS)
    said = installed.mvar(here, "submit", *grid, "--cluster", "cpu", "--cluster-set", *JOBS)
    assert "1 to submit" in said
    until("end of the jobs", lambda: not ask("squeue", "-h", "-a", "-o", "%T").strip())

    store = Store(here / "results")
    (run,) = (store.run(path.name) for path in sorted((store.root / "runs").iterdir()))
    logs = "".join(p.read_text() for p in sorted((store.root / "submissions").glob("*/logs/*.err")))
    assert run.state() == DONE, (run.status(), logs)
    (plugin,) = json.loads((run.path / "plugins.json").read_text())["plugins"]
    assert "-again-" in run.name and plugin["path"].endswith("/plugins/one.py")  # of the snapshot
    assert "1 done" in installed.mvar(here, "status")
    (code,) = (store.root / "submissions" / "code").iterdir()
    git = json.loads((run.path / "env.json").read_text())["git"]
    assert (git["snapshot"], git["commit"], git["dirty"]) == (code.name, None, None)
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mvar/")}
    assert any(name.startswith("mvar/_shipped/experiments/") for name in packaged)
    assert files_below(code) == packaged | {*snapshot.OWN, "plugins/one.py"}

    jobs = [p for p in installed.processes() if any("submitit" in word for word in p["words"])]
    assert len(jobs) == 2  # the shared stages, the run
    for job in jobs:
        code_files = [Path(file) for file in job["files"] if file.endswith(".py")]
        ours = [path for path in code_files if "mvar" in path.parts]
        assert ours and all(path.is_relative_to(code) for path in ours)
        assert all(path.is_relative_to(code) for path in code_files if path.is_relative_to(here))
