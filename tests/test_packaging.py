"""What is installed is whole: the files beside the code, and a copy of those that users edit, and it is found there."""

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.resources import files
from pathlib import Path, PurePath

import installed_wheel
import pytest
import tiny_runs

from mvar import shipped
from mvar.analysis.page import TEMPLATE
from mvar.cli import main
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.runs.experiment import Experiment, experiment_names, find_experiment, paper_rows, take_experiment
from mvar.runs.request import Request, write_manifest
from mvar.runs.store import Store

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
SHORT = {
    "model.depth": 4,
    "train.steps": 2,
    "tokenizer.train.steps": 4,
    "evaluation.classifier_steps": 4,
    "runtime.log_every": 1,
}


def test_every_file_is_packaged():
    assert SETUPTOOLS["packages"]["find"]["include"] == ["mvar*"]  # nothing else is importable
    patterns = SETUPTOOLS["package-data"]["mvar"]
    for path in (ROOT / "mvar").rglob("*"):
        name = path.relative_to(ROOT / "mvar")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in name.parts:
            assert any(PurePath(name).match(pattern) for pattern in patterns), f"mvar/{name} is in no package"


def test_every_folder_with_code_is_a_package():
    for path in (ROOT / "mvar").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), path


def test_packaged_files_are_found():
    assert (files("mvar.analysis") / TEMPLATE).is_file()
    tables = sorted((shipped.folder("experiments") / "paper").iterdir())
    assert len(tables) >= 8
    for path in tables:
        assert paper_rows(path.stem)


def test_a_file_is_found_by_name_or_path_and_never_in_the_working_directory(tmp_path, monkeypatch):
    own = tmp_path / "experiments"
    own.mkdir()
    (own / "mixers.py").write_text("raise RuntimeError('a stranger')\n")
    (tmp_path / "mixers.py").write_text("raise RuntimeError('a stranger')\n")
    monkeypatch.chdir(tmp_path)
    assert find_experiment("mixers").artefact == "Table 6"
    with pytest.raises(UserError, match=r"experiments/mixers.py: cannot be loaded \(RuntimeError: a stranger\)"):
        take_experiment("experiments/mixers.py")
    with pytest.raises(UserError, match=r"no file '\./layers\.py'"):
        take_experiment("./layers.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty.py: has no EXPERIMENT"):
        take_experiment("empty.py")
    for text, told in (
        ("import sys; sys.exit(3)", "cannot be loaded .SystemExit: 3"),
        ("from mvar import Experiment; EXPERIMENT = Experiment('a/b', '', '', lambda c: [])", "'a/b' is no name"),
    ):
        (tmp_path / "wrong.py").write_text(text)
        shipped.load.cache_clear()
        with pytest.raises(UserError, match=told):
            take_experiment("./wrong.py")
    for given in ("~nobody-of-that-name/x.py", "./empty.txt"):
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(UserError, match=r"allowed: the path of a \.py file"):
            take_experiment(given)


@pytest.mark.slow
def test_an_experiment_of_ones_own_has_a_name_of_its_own_and_a_table(tmp_path):
    text = (ROOT / "experiments/mixers.py").read_text()
    mine = tmp_path / "mine.py"
    mine.write_text(text)
    with pytest.raises(UserError, match="is called 'mixers', as one of ours"):
        take_experiment(str(mine))
    mine.write_text(text.replace('"mixers",', '"mine",', 1))
    store = Store(tmp_path / "results")
    write_manifest(store, Request(take_experiment(str(mine)), "smoke", PRESETS["smoke"]), ["run", str(mine)])
    report = ["report", "--results", str(store.root)]
    assert main([*report, "--experiments", str(mine)]) in (0, 2)  # 2: no run yet
    assert "Table 6: mine, smoke" in (store.root / "report/report.md").read_text()
    main(report)
    told = f"no table is known for 'mine'; one of your own is shown by `mvar report --experiments {mine}`"
    assert told in (store.root / "report/report.md").read_text()


@pytest.mark.parametrize("build", [lambda config: [], lambda config: [][1], lambda config: [config]])
def test_an_experiment_without_cells_is_one_line(build):
    with pytest.raises(UserError, match="experiment mine: no cells"):
        Experiment("mine", "", "", build).cells(PRESETS["smoke"])


def test_what_a_results_directory_holds_names_no_file_to_run(tmp_path):
    """A manifest whose sweep is a path is one that is not known: nothing but a user's own words runs a file."""
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    store = Store(tmp_path / "results")
    path = write_manifest(store, Request(find_experiment("mixers"), "smoke", PRESETS["smoke"]), ["run", "mixers"])
    path.write_text(path.read_text().replace('"mixers"', json.dumps(str(evil)), 1))
    assert str(evil) in path.read_text()
    (store.root / "runs/one").mkdir(parents=True)
    (store.root / "runs/one/config.json").write_text("{")
    for command in ("repair", "status", "report"):
        main([command, "--results", str(store.root)])
    assert not (tmp_path / "ran").exists()


def test_one_file_with_a_mistake_harms_no_other(tmp_path, monkeypatch, capsys):
    for kind in ("experiments", "analysis"):
        shutil.copytree(shipped.folder(kind), tmp_path / kind)
        (tmp_path / kind / "broken.py").write_text("1 / 0")
    monkeypatch.setattr(shipped, "folder", lambda kind: tmp_path / kind)
    results = tmp_path / "results"
    assert main(["run", "mixers", "--preset", "smoke", "--dry-run", "--results", str(results)]) == 0
    write_manifest(Store(results), Request(find_experiment("mixers"), "smoke", PRESETS["smoke"]), ["run", "mixers"])
    capsys.readouterr()
    assert main(["report", "--results", str(results)]) == 2  # no run yet
    text = (results / "report/report.md").read_text()
    assert "Table 6: mixers, smoke" in text and "Table 2: class-conditional" in text
    for kind in ("experiments", "analysis"):
        assert f"{kind}/broken.py: cannot be loaded (ZeroDivisionError: division by zero)" in text
    assert main(["run", "broken", "--dry-run", "--results", str(results)]) == 2
    assert "experiments/broken.py: cannot be loaded" in capsys.readouterr().err


def test_every_file_that_users_edit_can_be_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in shipped.KINDS:
        for path in shipped.files(kind):
            name = f"{kind}/{path.relative_to(shipped.folder(kind))}"
            assert main(["copy", name]) == 0 and Path(name).read_bytes() == path.read_bytes()
            assert main(["copy", f"./{name}"]) == 2  # it is there
    assert main(["copy", "experiments/../setup.py"]) == 2


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return installed_wheel.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> installed_wheel.Installed:
    return installed_wheel.Installed(wheel, tmp_path_factory.mktemp("installed"))


def test_a_wheel_has_the_package_and_a_copy_of_what_users_edit(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"mvar"}
    others = {str(p.relative_to(ROOT)) for p in (ROOT / "mvar").rglob("*") if p.suffix in {".jinja", ".js", ".css"}}
    assert len(others) >= 4 and others <= set(names)
    for kind in shipped.KINDS:
        here = {
            str(p.relative_to(ROOT))
            for p in shipped.folder(kind).rglob("*")
            if p.suffix in {".py", ".csv", ".toml", ".md", ".ipynb"}
        }
        assert {f"mvar/_shipped/{name}" for name in here} <= set(names), kind


@pytest.mark.slow
def test_a_wheel_beside_a_users_own_folders_of_these_names(installed, tmp_path):
    installed_wheel.strangers(tmp_path)
    mine = tmp_path / "mine.py"
    assert "7 runs" in installed.mvar(tmp_path, "run", "mixers", "layers", "--preset", "smoke", "--dry-run")
    assert "mine.py" in installed.mvar(tmp_path, "copy", "experiments/mixers.py", "mine.py")
    assert mine.read_bytes() == (ROOT / "experiments/mixers.py").read_bytes()
    mine.write_text(mine.read_text().replace('"mixers",', '"mine",', 1))
    assert "4 runs" in installed.mvar(tmp_path, "run", "./mine.py", "--preset", "smoke", "--dry-run")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_runs_the_demo_beside_a_users_own_folders_of_these_names(installed, tmp_path):
    """Every command of the demo and those that look at its runs; worker processes too have the wheel's code alone."""
    installed_wheel.strangers(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    demo = ("mixers", "layers", "parameters")
    settings = [f"{name}={value}" for name, value in (tiny_runs.TINY | SHORT).items()]
    installed.mvar(tmp_path, "run", *demo, "--preset", "smoke", "--workers", "2", "--set", *settings)
    installed.mvar(tmp_path, "report")
    results = tmp_path / "results"
    runs = sorted((results / "runs").iterdir())
    assert f"{len(runs)} done" in installed.mvar(tmp_path, "status") and len(runs) > 7
    run = next(
        run.name for run in runs if json.loads((run / "config.json").read_text())["model"]["pattern"] == "global"
    )
    installed.mvar(tmp_path, "attention", run, "--images", "20", "--out", "attention")
    installed.mvar(tmp_path, "sample", run, "--classes", "0,1", "--per-class", "2")
    installed.mvar(tmp_path, "evaluate", run, "--set", "sample.cfg_scale=2")
    assert run in installed.mvar(tmp_path, "logs", run)
    assert "7 runs" in installed.mvar(tmp_path, "plan", "mixers", "layers", "--preset", "smoke")
    assert "SLURM" in installed.mvar(tmp_path, "doctor")
    installed.mvar(tmp_path, "knockout", run, "--images", "8", "--cut", "own")
    installed.mvar(tmp_path, "explore", run, "--out", "explorer.html")
    assert "num_workers" in installed.mvar(tmp_path, "config", "fields", "runtime")
    submit = ("submit", "mixers", "--preset", "smoke", "--seeds", "2", "--cluster", "one-gpu", "--dry-run")
    assert "#SBATCH" in installed.mvar(tmp_path, *submit)
    assert "<title>" in (tmp_path / "explorer.html").read_text()
    for written in ("attention/attention_flow.png", "grid.png"):
        assert (tmp_path / written).read_bytes().startswith(b"\x89PNG"), written
    for path in runs:
        assert json.loads((path / "env.json").read_text())["git"] == {"commit": None, "dirty": None}
        assert json.loads((path / "eval.json").read_text())["evaluations"].keys()
    whole = subprocess.run([sys.executable, ROOT / ".ci/check_report.py", results], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stdout  # every run, table and figure

    installed.mvar(tmp_path, "copy", "analysis/layers.py", "mine.py")
    own = installed.python(tmp_path, "mine.py")
    assert own.returncode == 0, own.stderr
    assert list((results / "analysis/layers/figures").glob("layers-smoke-*.png"))

    assert {path: path.read_bytes() for path in before} == before
    processes = installed.processes()
    assert sum("--multiprocessing-fork" in process["words"] for process in processes) >= 2
    for process in processes:
        code = [Path(file) for file in process["files"] if file.endswith(".py")]
        ours = [path for path in code if "mvar" in path.parts]
        assert all(path.is_relative_to(installed.site) for path in ours), process["words"]
        assert {path for path in code if path.is_relative_to(tmp_path)} <= {tmp_path / "mine.py"}, process["words"]
        assert not any(path.is_relative_to(ROOT) and ".venv" not in path.parts for path in code), process["words"]


def test_experiments_are_short_and_in_order():
    others = ["guidance", "inter_scale", "layers", "parameters", "placement", "rejection", "scaling"]
    assert experiment_names() == ["mixers", *others]
    for name in experiment_names():
        assert len(shipped.find("experiments", name).read_text().splitlines()) < 100
