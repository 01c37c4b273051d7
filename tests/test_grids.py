"""`--grid`, `--name`, `--only`, `--config`: a table of one's own without a file, and a run in a file."""

import json
import shlex
import tomllib

import pytest
import tiny_runs

from mvar.analysis.manifests import read_manifests
from mvar.cli import main
from mvar.config import RunConfig
from mvar.errors import OK, USER_ERROR, UserError
from mvar.presets import PRESETS
from mvar.runs.config_file import read_config_file
from mvar.runs.executors.contract import Summary
from mvar.runs.grid import read_grid, short_names, split_values
from mvar.runs.store import Store

SMOKE = PRESETS["smoke"]
GRID = ["--grid", "model.pattern=mamba,intra", "train.base_lr=1e-4,3e-4"]
LABELS = [f"pattern={p}, base_lr={lr}" for p in ("mamba", "intra") for lr in ("1e-4", "3e-4")]


@pytest.fixture
def made(monkeypatch):
    """The runs that commands would have made."""
    found = []

    def run_all(configs, store, workers=None):
        found.append(list(configs))
        return Summary(num_runs=len(configs), num_done=len(configs))

    monkeypatch.setattr("mvar.runs.runner.run_all", run_all)
    return found


def run(root, *words):
    return main(["run", *words, "--results", str(root / "results")])


def manifest(root, name="mine"):
    (path,) = (root / "results/sweeps").glob(f"{name}-*.json")
    return json.loads(path.read_text())


def test_a_grid_is_every_combination_labelled_by_what_varies(tmp_path, made):
    assert run(tmp_path, "--preset", "smoke", *GRID, "--name", "mine") == OK
    asked = [(config.model.pattern, config.train.base_lr) for config in made[-1]]
    assert asked == [("mamba", 1e-4), ("mamba", 3e-4), ("intra", 1e-4), ("intra", 3e-4)]
    assert [cell["label"] for cell in manifest(tmp_path)["cells"]] == LABELS
    assert not any(cell["printed"] for cell in manifest(tmp_path)["cells"])  # nothing of the paper's
    store = Store(tmp_path / "results")
    (found,) = read_manifests(store, lambda name, read: read(), lambda run_id, key: run_id)
    assert found.is_known and [cell.label for cell in found.cells] == LABELS
    cells = list(found.cells)
    assert {found.experiment.against(cell, cells).label for cell in cells} == {LABELS[0]}


def test_its_name_stands_for_it_from_then_on_and_more_values_extend_it(tmp_path, made):
    run(tmp_path, "--preset", "smoke", *GRID, "--name", "mine", "--seeds", "2", "--baseline", LABELS[2])
    assert run(tmp_path, "--name", "mine") == OK and len(made[-1]) == 8  # the settings and seeds of before
    assert run(tmp_path, "--name", "mine", "--only", LABELS[3]) == OK and len(made[-1]) == 2
    assert run(tmp_path, "--name", "mine", "--only", "pattern=intra") == OK and len(made[-1]) == 4  # both rows
    assert {config.model.pattern for config in made[-1]} == {"intra"}
    more = ["--grid", "train.base_lr=1e-3", "model.pattern=mamba"]
    assert run(tmp_path, "--preset", "smoke", *more, "--name", "mine") == OK
    assert [config.train.base_lr for config in made[-1]] == [1e-3]
    kept = manifest(tmp_path)
    assert kept["grid"]["baseline"] == LABELS[2] and len(kept["cells"]) == 6


@pytest.mark.parametrize(
    "words, said",
    [
        (["--grid", "model.pattern=intra"], "grid.*allowed: .*--name"),
        (["--grid", "model.patern=a,b", "--name", "x"], r"grid: field model.patern: 'patern' is unknown .did you mean"),
        (["--grid", "train.steps=", "--name", "x"], r"grid: train.steps: '' has an empty value; allowed: FIELD=VALUE"),
        (["--grid", "train.steps=5,5.0", "--name", "x"], r"grid: train.steps: '5' and '5.0' are one value"),
        (["--grid", "train.steps", "--name", "x"], r"grid: 'train.steps' is not FIELD=VALUE,VALUE"),
        (["--grid", "seed=1,2", "--name", "x"], r"grid: seed is given by --seeds"),
        (["--grid", "data.name=a,b", "--name", "x"], r"rows of one table do not differ in data"),
        (["--grid", "train.steps=1,2", "train.steps=3", "--name", "x"], r"train.steps is given twice"),
        (["--grid", "train.steps=1,2", "--name", "mixers"], r"name: 'mixers' is the name of an experiment"),
        (["--grid", "train.steps=1,2", "--name", "A b"], r"name: 'A b' is none; allowed: up to 32 small letters"),
        (
            ["--grid", "train.steps=1,2", "--name", "x", "--only", "y"],
            r"only: 'y' is no row of it; allowed: steps=1",
        ),
        (
            [*GRID, "--name", "x", "--only", "pattern=mambo"],
            r"no row of it \(did you mean 'pattern=mamba'\?\); allowed",
        ),
        (["--grid", "train.steps=1,2", "--name", "x", "--baseline", "y"], r"baseline: 'y' is no row of it; allowed"),
        (["--name", "nothing"], r"name: 'nothing' is unknown; allowed"),
        (["--grid", "train.steps=1,-2", "--name", "x"], r"grid: train.steps: '?-2'?: "),
    ],
)
def test_mistakes_are_one_line(tmp_path, made, capsys, words, said):
    assert run(tmp_path, "--preset", "smoke", *words) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert pytest.raises(UserError, match=said).matches(UserError(line)), line
    assert not made and not (tmp_path / "results/sweeps").exists()


def test_another_grid_of_that_name_is_refused(tmp_path, made, capsys):
    run(tmp_path, "--preset", "smoke", *GRID, "--name", "mine")
    assert run(tmp_path, "--preset", "smoke", "--grid", "train.steps=5,6", "--name", "mine") == USER_ERROR
    assert (
        "'mine' is a grid of model.pattern, train.base_lr, and this is a grid of train.steps" in capsys.readouterr().err
    )


def test_a_field_beside_a_name_counts_after_the_grid_s_own_preset_and_settings(tmp_path, made, capsys):
    """For `run` and `plan` as for `evaluate`; the first table stays what it was."""
    assert run(tmp_path, "--preset", "smoke", *GRID, "--name", "mine", "--set", "train.steps=7", "--seeds", "2") == OK
    assert run(tmp_path, "--name", "mine", "--set", "train.batch_size=16") == OK
    assert {(c.model.width, c.train.steps, c.train.batch_size, c.seed) for c in made[-1]} == {
        (SMOKE.model.width, 7, 16, seed) for seed in (0, 1)
    }
    assert run(tmp_path, "--name", "mine") == USER_ERROR  # of two tables now
    assert "'mine' was asked for with several settings; allowed: say which: --preset smoke" in capsys.readouterr().err


def test_a_field_that_the_grid_varies_is_not_set(tmp_path, made, capsys):
    told = "set: train.base_lr: the grid 'mine' varies it; allowed: its values in --grid alone, or --only for one of"
    words = ["--preset", "smoke", *GRID, "--name", "mine"]
    assert run(tmp_path, *words, "--set", "train.base_lr=1") == USER_ERROR
    assert told in capsys.readouterr().err and not made
    assert run(tmp_path, *words) == OK
    assert run(tmp_path, "--name", "mine", "--set", "train.base_lr=1") == USER_ERROR
    assert told in capsys.readouterr().err and len(made) == 1


def test_a_grid_that_was_taken_back_is_asked_for_again_in_whole(tmp_path, made, capsys):
    """By the commands that have asked for a part each; one that asked for nothing more is not among them."""
    results = ["--results", str(tmp_path / "results")]
    run(tmp_path, "--preset", "smoke", *GRID, "--name", "mine")
    before = manifest(tmp_path)["cells"]
    run(tmp_path, "--name", "mine", "--only", LABELS[3])
    assert manifest(tmp_path)["cells"] == before and "earlier_commands" not in manifest(tmp_path)
    run(tmp_path, "--preset", "smoke", "--grid", "train.base_lr=1e-3", "model.pattern=mamba", "--name", "mine")
    run(tmp_path, "--name", "mine", "--only", LABELS[3], "--seeds", "2")
    whole = manifest(tmp_path)
    capsys.readouterr()
    assert main(["forget", "mine", *results]) == OK
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    commands = [line.partition(": ")[2] for line in lines if line.startswith(("to ask again: ", "and then: "))]
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command)[1:]) == OK
    assert manifest(tmp_path)["cells"] == whole["cells"]
    run(tmp_path, "--name", "mine", "--seeds", "2")  # all of it at once
    assert "earlier_commands" not in manifest(tmp_path)


def test_commas_inside_brackets_and_quotes_separate_nothing():
    assert split_values("f", "[1,2,3],[1,2,4]") == ["[1,2,3]", "[1,2,4]"]
    assert split_values("f", "'recent:w=2,x=3',mamba") == ["recent:w=2,x=3", "mamba"]
    with pytest.raises(UserError, match="a bracket without its other half"):
        split_values("f", "[1,2")
    assert short_names(["train.steps", "tokenizer.train.steps", "model.width"]) == [
        "train.steps",
        "tokenizer.train.steps",
        "width",
    ]
    (axis,) = read_grid(["tokenizer.patch_sides=[1,2,3,4],[1,4]"], RunConfig())
    assert axis.values == ("[1,2,3,4]", "[1,4]")


# Configs in files -----------------------------------------------------------------------------------------------------


def test_a_file_says_what_differs_from_a_preset(tmp_path, made):
    (tmp_path / "run.yaml").write_text("preset: smoke\nseed: 3\ntrain: {steps: 8}\nmodel:\n pattern: 2*intra 2*mamba\n")
    (tmp_path / "run.toml").write_text('preset="smoke"\nseed=3\ntrain.steps=8\nmodel.pattern = "2*intra 2*mamba"\n')
    assert tomllib.loads((tmp_path / "run.toml").read_text())
    for suffix in ("yaml", "toml"):
        assert run(tmp_path, "--config", str(tmp_path / f"run.{suffix}")) == OK
    ((first,), (second,)) = made
    assert first == second and (first.seed, first.train.steps, first.model.pattern) == (3, 8, "2*intra 2*mamba")
    assert first.tokenizer == SMOKE.tokenizer
    assert run(tmp_path, "--config", str(tmp_path / "run.yaml"), "--set", "train.steps=9", "--seeds", "2") == OK
    assert [(config.seed, config.train.steps) for config in made[-1]] == [(0, 9), (1, 9)]


def test_a_runs_own_config_is_that_run(tmp_path, made):
    store = Store(tmp_path / "results")
    config = tiny_runs.CONFIG
    directory = store.run_of(config)
    directory.path.mkdir(parents=True)
    directory.write_config(config)
    for given in (directory.path, directory.config_path):
        assert run(tmp_path, "--config", str(given)) == OK
        (made_now,) = made[-1]
        assert made_now.run_id == config.run_id and made_now.evaluation_id == config.evaluation_id


def test_a_run_s_own_config_is_the_request_that_it_was_asked_for_by(tmp_path, made):
    (tmp_path / "run.yaml").write_text("preset: smoke\nseed: 3\ntrain: {batch_size: 16}\n")
    assert run(tmp_path, "--config", str(tmp_path / "run.yaml"), "--set", "train.steps=8") == OK
    ((config,),) = made
    directory = Store(tmp_path / "results").run_of(config)
    directory.write_config(config)
    (path,) = (tmp_path / "results/sweeps").glob("*.json")
    kept = path.read_text()
    assert run(tmp_path, "--config", str(directory.path)) == OK
    assert [one.run_id for one in made[-1]] == [config.run_id]
    assert json.loads(path.read_text())["cells"] == json.loads(kept)["cells"]
    assert len(list((tmp_path / "results/sweeps").glob("*.json"))) == 1


def test_a_run_in_the_place_of_a_sweep_is_told_how_to_ask(tmp_path, made, capsys):
    config = tiny_runs.CONFIG
    directory = Store(tmp_path / "results").run_of(config)
    directory.write_config(config)
    for given in (config.run_id, config.run_id[:-3], str(directory.path)):
        assert run(tmp_path, given) == USER_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        assert f"is a run; allowed: --config {directory.path}, which is that run again" in line
    assert not made


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.yaml", "train: {stepz: 8}", r"a.yaml: field train.stepz: 'stepz' is unknown .did you mean 'steps'"),
        ("a.yaml", "train: {steps: many}", r"a.yaml: train.steps: 'many'"),
        ("a.yaml", "train: [1\nb: }", r"a.yaml is not valid YAML .line 2: "),
        ("a.toml", "x = ", r"a.toml is not valid TOML"),
        ("a.yaml", "- 1\n- 2\n", r"a.yaml holds no fields; allowed: FIELD = VALUE"),
        ("a.yaml", "preset: digitz", r"a.yaml: preset: 'digitz' is unknown .did you mean 'digits'"),
        ("a.json", '{"schema_version": 9}', r"a.json: schema_version is 9; allowed: 1"),
        ("a.txt", "x", r"config: .*a.txt' has no suffix of a config file; allowed: a .yaml, .toml or .json file"),
        ("gone/a.yaml", None, r"config: .*a.yaml cannot be read .No such file"),
    ],
)
def test_mistakes_in_a_file_name_file_and_field(tmp_path, name, text, said, capsys):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    assert run(tmp_path, "--config", str(path), "--dry-run") == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert pytest.raises(UserError, match=said).matches(UserError(line)), line


def test_a_config_of_a_newer_version_names_what_is_not_known(tmp_path):
    from mvar.config import identity

    document = identity.as_document(SMOKE)
    document["train"]["newer"] = 1
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"config.json: .*train.newer"):
        read_config_file(str(tmp_path / "config.json"))


# Patterns of one's own ------------------------------------------------------------------------------------------------


def test_patterns_of_ones_own_are_rows_of_one_table(tmp_path, made):
    for pattern in ("4*mamba", "2*mamba 2*global", "intra+global"):
        assert run(tmp_path, "mixers", "--preset", "smoke", "--set", f"model.pattern={pattern}") == OK
    store = Store(tmp_path / "results")
    (found,) = read_manifests(store, lambda name, read: read(), lambda run_id, key: run_id)
    labels = [cell.label for cell in found.cells]
    assert labels[:4] == ["VAR", "1 (intra-only)", "2 (Mamba-only)", "M-VAR"]
    assert sorted(labels[4:]) == ["2*mamba 2*global", "intra+global"]  # 4*mamba is the paper's second
