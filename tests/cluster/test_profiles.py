"""Cluster profiles: files, overrides, mistakes; and what of the user's environment reaches a job."""

import os

import pytest

from mvar.cluster.profiles import PROFILES, Profile, load_profile
from mvar.cluster.scheduler import clean_environment
from mvar.cluster.submit import profile_of_job
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.runs.plan import RUN, tasks_of
from mvar.runs.store import Store

TOML = """
base = "slurm-gpu"
partition = "a100"
account = "vision"
mem_gb = 100
setup = ["module load cuda/12.4"]
[env]
NCCL_SOCKET_IFNAME = "ib0"
[sbatch]
exclusive = true
"""
YAML = """
base: slurm-gpu
partition: a100
account: vision
mem_gb: 100
setup: ["module load cuda/12.4"]
env: {NCCL_SOCKET_IFNAME: ib0}
sbatch: {exclusive: true}
"""


@pytest.mark.parametrize(("suffix", "text"), [("toml", TOML), ("yaml", YAML), ("yml", YAML)])
def test_a_file_changes_a_built_in_profile(tmp_path, suffix, text):
    path = tmp_path / f"mine.{suffix}"
    path.write_text(text)
    profile = load_profile(str(path), ["timeout_min=30", "account=1234", "env.A=1", "sbatch.reservation=july"])
    assert (profile.partition, profile.account, profile.mem_gb, profile.timeout_min) == ("a100", "1234", 100, 30)
    assert profile.gpus_per_node == PROFILES["slurm-gpu"].gpus_per_node == 1
    assert profile.setup == ("module load cuda/12.4",)
    assert profile.env == {"NCCL_SOCKET_IFNAME": "ib0", "A": "1"}
    assert profile.sbatch == {"exclusive": True, "reservation": "july"}


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("slrum", [], "did you mean 'slurm'"),
        ("nowhere.toml", [], "cannot be read"),
        ("slurm", ["partitoin=x"], "did you mean 'partition'"),
        ("slurm", ["timeout_min"], "is not FIELD=VALUE"),
        ("slurm", ["timeout_min=2", "signal_delay_s=120"], "allowed: less than 120"),
        ("slurm", ["nodes=0"], "nodes: 0"),
        ("slurm", ["sbatch.array=1-3"], "array is set by mvar"),
        ("slurm", ["sbatch.export=NONE"], "export is set by mvar"),
        ("slurm", ["sbatch.open_mode=truncate"], "open-mode is set by mvar"),
        ("slurm", ["sbatch.time=30"], "allowed: timeout_min"),
        ("slurm", ["workers=2"], "executor slurm does not use it"),
        ("local", ["mem_gb=4"], "allowed with it: workers"),
        ("inprocess", ["workers=4"], "allowed with it: none"),
        ("slurm", ["env.A-B=1"], "no name of a variable"),
    ],
)
def test_mistakes_are_one_line(name, settings, said):
    with pytest.raises(UserError, match=said) as error:
        load_profile(name, settings)
    assert "allowed" in str(error.value) or "greater" in str(error.value)


@pytest.mark.parametrize(
    ("suffix", "text"), [("toml", "a = ["), ("yaml", "a: ["), ("yaml", "- 1"), ("toml", "gpus = 1")]
)
def test_damaged_files_are_named(tmp_path, suffix, text):
    path = tmp_path / f"mine.{suffix}"
    path.write_text(text)
    with pytest.raises(UserError):
        load_profile(str(path))


def test_one_process_a_gpu_and_stages_on_one(tmp_path):
    profile = Profile(nodes=2, gpus_per_node=8)
    assert profile.num_tasks_per_node == 8
    stages = profile.for_stages
    assert (stages.nodes, stages.gpus_per_node, stages.num_tasks_per_node) == (1, 1, 1)
    assert Profile().num_tasks_per_node == 1 and Profile().for_stages.gpus_per_node == 0


def test_a_job_that_writes_tokens_has_all_gpus_unless_a_tokenizer_is_trained_first(tmp_path):
    """Its processes encode together (`TokenStage.take_part`); a training would be one's alone."""
    profile = Profile(nodes=2, gpus_per_node=8)
    published, own = (tasks_of([PRESETS[name]], Store(tmp_path)) for name in ("imagenet256-d16", "imagefolder64"))
    for tasks, wanted in ((published, profile), (own, profile.for_stages)):
        stages = [task for task in tasks if task.kind != RUN]
        assert {task.kind for task in stages} >= {"tokenizer", "tokens"}
        assert profile_of_job(profile, stages, 1) == wanted
        assert profile_of_job(profile, [task for task in stages if task.kind == "floors"], 1) == profile.for_stages
        assert profile_of_job(Profile(), stages, 1) == Profile().for_stages


def test_variables_of_another_job_or_launcher_do_not_leak(monkeypatch):
    for name in (
        "SLURM_JOB_ID",
        "SLURM_CPUS_PER_TASK",
        "RANK",
        "TORCHELASTIC_RUN_ID",
        "SBATCH_PARTITION",
        "SLURM_CONF",
    ):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    with clean_environment(Profile(partition="main")):
        found = {name for name in os.environ if name.startswith(("SLURM", "SBATCH", "RANK", "TORCHELASTIC"))}
    assert found == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert os.environ["RANK"] == "x"
