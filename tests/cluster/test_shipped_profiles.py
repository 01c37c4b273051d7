"""The profiles in `slurm/`: each loads by its name, asks SLURM for what it says, and the template knows every field."""

import re
import tomllib
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from mvar import shipped
from mvar.cli import main
from mvar.cluster.profiles import PROFILES, Profile, load_profile, profile_names, with_own_shell
from mvar.cluster.submission import Submission
from mvar.cluster.submit import make_executor
from mvar.errors import OK, USER_ERROR, UserError

FOLDER = Path(__file__).parents[2] / "slurm"
NAMES = ["cpu", "node-of-eight", "one-gpu", "preemptible", "several-nodes"]
# Lines of the batch script; what is not asked for is not there.
WANTED = {
    "cpu": ["time=240", "nodes=1", "ntasks-per-node=1", "cpus-per-task=8", "mem=16384M"],
    "one-gpu": ["time=240", "nodes=1", "ntasks-per-node=1", "cpus-per-task=8", "gpus-per-node=1"],
    "preemptible": ["time=120", "nodes=1", "ntasks-per-node=1", "cpus-per-task=8", "gpus-per-node=1"],
    "node-of-eight": ["time=1440", "nodes=1", "ntasks-per-node=8", "cpus-per-task=8", "gpus-per-node=8", "exclusive"],
    "several-nodes": ["time=1440", "nodes=2", "ntasks-per-node=8", "cpus-per-task=8", "gpus-per-node=8", "exclusive"],
}
SIGNAL = {"node-of-eight": 180, "several-nodes": 300}


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeSlurm:
    found = FakeSlurm(tmp_path / "bin")
    found.put_on_path(monkeypatch)
    return found


def test_every_file_has_a_name():
    assert sorted(path.stem for path in FOLDER.glob("*.toml")) == sorted([*NAMES, "template"])
    assert profile_names() == [*PROFILES, *NAMES]
    assert shipped.folder("slurm") == FOLDER  # of an editable install


@pytest.mark.parametrize("name", NAMES)
def test_what_a_profile_asks_for(fake, tmp_path, name):
    profile = load_profile(name)
    assert profile.source == name and profile.executor == "slurm"
    assert load_profile(str(FOLDER / f"{name}.toml")) == profile.model_copy(
        update={"source": str(FOLDER / f"{name}.toml")}
    )
    submission = Submission(tmp_path, profile, tmp_path, "")
    script = make_executor(submission, "mvar-test", profile)._make_submission_file_text("true", "test")
    asked = re.findall(r"^#SBATCH --(\S+)$", script, re.M)
    sizes = ("time", "nodes", "ntasks", "cpus", "mem", "gpus", "partition", "account", "qos", "constraint", "exclusive")
    assert sorted(line for line in asked if line.startswith(sizes)) == sorted(WANTED[name])
    assert f"signal=USR2@{SIGNAL.get(name, 120)}" in asked and "requeue" in asked


@pytest.mark.parametrize("name", NAMES)
def test_what_is_commented_out_is_allowed_too(name):
    """Settings behind a '#' are examples: each is a field that loads."""
    text = re.sub(r"(?m)^#(?=\[|\w+ = )", "", (FOLDER / f"{name}.toml").read_text())
    values = tomllib.loads(text)
    profile = Profile.model_validate(values)
    assert {"partition", "account"} & profile.model_dump(exclude_defaults=True).keys()


def test_a_name_is_never_a_file_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "one-gpu.toml", tmp_path / "slurm" / "one-gpu.toml", tmp_path / "slurm" / "mine.toml"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("nodes = 77\n")
    assert load_profile("one-gpu").nodes == 1
    assert load_profile("one-gpu.toml").nodes == load_profile("./slurm/one-gpu.toml").nodes == 77
    for name in ("mine", "slurm/mine", "../slurm/mine", "template"):
        with pytest.raises(UserError, match=r"unknown.*allowed: slurm, .*, cpu, node-of-eight, one-gpu, preempt"):
            load_profile(name)


def test_the_copy_in_the_wheel_where_there_is_no_repository(tmp_path, monkeypatch):
    (tmp_path / "mvar" / "_shipped" / "slurm").mkdir(parents=True)
    (tmp_path / "mvar" / "_shipped" / "slurm" / "one-gpu.toml").write_text("nodes = 5\n")
    for stray in ("pyproject.toml", "slurm/cpu.toml"):  # other packages leave such files beside it
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).write_text("nodes = 77\n")
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "mvar")
    assert load_profile("one-gpu").nodes == 5
    with pytest.raises(UserError, match=r"'cpu' is unknown"):
        load_profile("cpu")


def test_a_file_stands_on_one(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text('base = "node-of-eight"\npartition = "a100"\n')
    profile = load_profile(str(path))
    assert (profile.partition, profile.gpus_per_node, profile.sbatch) == ("a100", 8, {"exclusive": True})
    monkeypatch.setattr("mvar.shipped.folder", lambda kind: tmp_path)
    path.write_text('base = "other"\n')
    (tmp_path / "other.toml").write_text('base = "mine"\n')
    for name in ("mine", "other", str(path)):
        with pytest.raises(UserError, match=r"mine.toml.*leads back to itself; allowed: another profile"):
            load_profile(name)


def test_a_stored_profile_knows_its_name(monkeypatch, tmp_path, capsys):
    """`mvar retry` takes shell lines from the file as it is now."""
    stored = load_profile("one-gpu", ["partition=a100"])
    (tmp_path / "one-gpu.toml").write_text('gpus_per_node = 4\n[env]\nA = "1"\n')
    monkeypatch.setattr("mvar.shipped.folder", lambda kind: tmp_path)
    found = with_own_shell(stored)
    assert (found.partition, found.gpus_per_node, found.env) == ("a100", 1, {"A": "1"})
    assert "env differs between profile one-gpu and what was submitted (A)" in capsys.readouterr().err


def test_a_submission_by_name(fake, tmp_path, capsys):
    results = ["--results", str(tmp_path / "results")]
    assert main(["submit", "layers", "--preset", "smoke", "--cluster", "one-gpu", "--dry-run", *results]) == OK
    assert "5 to submit" in capsys.readouterr().out and fake.lines == []
    assert main(["submit", "layers", "--preset", "smoke", "--cluster", "one-gup", *results]) == USER_ERROR
    assert "(did you mean 'one-gpu'?)" in capsys.readouterr().err


# The template -------------------------------------------------------------------------------------------------------


def paragraphs() -> dict[str, tuple[str, str]]:
    """Of each field of the template its setting, and what is said of it."""
    found = {}
    for part in (FOLDER / "template.toml").read_text().split("\n\n"):
        setting = "\n".join(line[1:] for line in part.splitlines() if re.match(r"#(\[|\w+ = )", line))
        if setting:
            name = re.match(r"\[?(\w+)", setting)[1]
            assert name not in found
            found[name] = setting, " ".join(line[2:] for line in part.splitlines() if line.startswith("# "))
    return found


def test_the_template_sets_nothing():
    assert tomllib.loads((FOLDER / "template.toml").read_text()) == {}


def test_the_template_has_every_field():
    assert paragraphs().keys() == {"base", *Profile.model_fields} - {"source"}


@pytest.mark.parametrize("name", sorted({*Profile.model_fields} - {"source"}))
def test_the_template_says_what_is_allowed(name):
    """Default and bounds are those of the code, and the example loads."""
    setting, said = paragraphs()[name]
    field = Profile.model_fields[name]
    values = tomllib.loads(setting)
    executor = {"executor": "local"} if name == "workers" else {}
    profile = Profile.model_validate({**values, **executor})
    default = field.get_default(call_default_factory=True)
    if default in (None, (), {}):
        assert "Default: none." in said and getattr(profile, name) != default
    else:
        assert f"Default: {default}" in said and getattr(profile, name) == default
    assert "Allowed: " in said
    for bound in field.metadata:
        value = getattr(bound, "ge", getattr(bound, "le", None))
        text = "1/1024" if value == 1 / 1024 else f"{value:,.0f}"
        assert re.search(rf"Allowed: .*\b{text}\b", said), (name, text)
