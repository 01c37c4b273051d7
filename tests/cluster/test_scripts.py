"""What `mvar submit --dry-run` prints: the scripts that sbatch would get, on a machine without SLURM too."""

import pytest
from fake_slurm import FakeSlurm
from tiny_runs import TINY

from mvar.cli import main
from mvar.cluster.doctor import examine
from mvar.errors import OK, USER_ERROR


@pytest.fixture
def no_slurm(monkeypatch):
    """A PATH without SLURM's commands, which this machine may have."""
    monkeypatch.setenv("PATH", "/nonexistent")


def shown(capsys, tmp_path, *more: str) -> str:
    """What the command prints."""
    settings = [f"{name}={value}" for name, value in TINY.items()]
    place = ["--results", str(tmp_path / "results"), "--set", *settings]
    assert main(["submit", "mixers", "--preset", "smoke", "--dry-run", *more, *place]) == OK
    return capsys.readouterr().out


def test_scripts_without_slurm(no_slurm, tmp_path, capsys):
    out = shown(capsys, tmp_path, "--cluster", "one-gpu", "--cluster-set", "partition=a100", "account=vision")
    stages, runs = out.split("==> shared stages, one job <==")[1].split("==> runs, an array of 4 <==")
    for script in (stages, runs):
        assert script.strip().startswith("#!/bin/bash")
        assert "#SBATCH --partition=a100" in script and "#SBATCH --account=vision" in script
        assert "-m mvar.cluster.guard" in script
    assert "#SBATCH --array=0-3%" in runs and "#SBATCH --dependency=afterok:JOB_OF_THE_STAGES" in runs
    assert "dependency" not in stages and "--array" not in stages
    assert out.endswith("would call sbatch 2 times; SLURM is not here: whether it would, is not known\n")
    assert not (tmp_path / "results").exists()


UNKNOWN = "scontrol: fatal: Could not establish a configuration source"
AWAY = "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)"


@pytest.mark.parametrize("said", [UNKNOWN, AWAY])
def test_slurm_is_installed_and_does_not_answer(said, tmp_path, monkeypatch, capsys):
    """Where no cluster is known scripts are shown, as on a laptop with SLURM's package; one that is away is named."""
    fake = FakeSlurm(tmp_path / "slurm")
    (fake.folder / "scontrol").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    fake.put_on_path(monkeypatch)
    (found,) = (finding for finding in examine(tmp_path) if finding.what == "SLURM controller")
    assert found.state == "missing" and ("knows no cluster" in found.found) == (said == UNKNOWN)
    if said == UNKNOWN:
        assert shown(capsys, tmp_path, "--cluster", "cpu").endswith(
            "; SLURM is not here: whether it would, is not known\n"
        )
    else:
        place = ["--results", str(tmp_path / "results")]
        assert main(["submit", "mixers", "--preset", "smoke", "--dry-run", "--cluster", "cpu", *place]) == USER_ERROR
        assert f"mvar: error: scontrol: {said}" in capsys.readouterr().err


def test_runs_of_one_job(no_slurm, tmp_path, capsys):
    out = shown(capsys, tmp_path, "--cluster", "cpu", "--cluster-set", "runs_per_job=4")
    assert "==> runs, one job <==" in out and "--array" not in out
