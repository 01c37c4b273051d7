"""What people type: lists, numbers, budgets, seeds, environment variables; the right value, or one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mvar import __version__
from mvar.cli import main, parse
from mvar.commands.checkpoint import CheckpointFiles
from mvar.commands.request import MAX_SEEDS, with_budget_value
from mvar.commands.run import Run
from mvar.config import RunConfig, override
from mvar.config.parsing import parse_overrides
from mvar.errors import OK, USER_ERROR, UserError
from mvar.presets import PRESETS
from mvar.runs.display import duration
from mvar.runs.experiment import MAX_STEPS
from mvar.runs.plan import run_flops, sampling_flops
from mvar.runs.store import Store

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("text", ["1,2,3,4", "1, 2, 3, 4", "[1,2,3,4]", "[1, 2, 3, 4]", "(1,2,3,4)", " 1,2,3,4, "])
def test_lists_as_people_type_them(text):
    assert override(RunConfig(), {"tokenizer.patch_sides": text}).tokenizer.patch_sides == (1, 2, 3, 4)
    assert CheckpointFiles(patch_sides=text).sides() == (1, 2, 3, 4)


def test_sides_of_a_checkpoint_with_hyphens():
    assert CheckpointFiles(patch_sides="1-2-3").sides() == (1, 2, 3)


@pytest.mark.parametrize(
    "text", ["1-2-3", "1 2", "1,,2", "[1,2", "1,2]", "1_2_3", "a", "[[1,2]]", "1;2", "9" * 5000, "١,٢"]
)
def test_lists_that_are_none(text):
    with pytest.raises(UserError, match=r"^tokenizer.patch_sides: .* is no list of whole numbers; allowed: e.g. ") as e:
        override(RunConfig(), {"tokenizer.patch_sides": text})
    assert len(str(e.value)) < 400


@pytest.mark.parametrize("rule", ["[0,3]", "0,3", "0, 3", "(0, 3)", "[ 3, 0 ]", "0,3,", [0, 3], (3, 0)])
def test_replaced_layers_as_people_type_them(rule):
    pattern = override(RunConfig(), {"model.replace": rule}).model.pattern
    assert pattern == "intra+mamba 2*global intra+mamba 4*global"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("data.root", "2024", "2024"),
        ("data.root", "1e3", "1e3"),
        ("data.root", "true", "true"),
        ("data.root", "none", None),
        ("train.steps", "1e3", 1000),
        ("train.steps", " 7 ", 7),
        ("train.base_lr", ".5", 0.5),
        ("train.weight_decay_end", "none", None),
        ("data.hflip", "True", True),
        ("data.hflip", "no", False),
        ("seed", str(2**63 - 1), 2**63 - 1),
    ],
)
def test_values_mean_what_they_say(name, text, value):
    config = override(RunConfig(), {name: text})
    for part in name.split("."):
        config = getattr(config, part)
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.steps=", "train.steps: has no value; allowed: train.steps=VALUE\n"),
        ("data.root=", "data.root: has no value; allowed: data.root=VALUE, or none\n"),
        ("train.init_from= ", "train.init_from: has no value; allowed: train.init_from=VALUE, or none\n"),
        ("model.pattern=", "model.pattern: has no value"),
        ("=", "set: '=' is not FIELD=VALUE"),
        ("=4", "set: '=4' is not FIELD=VALUE"),
        ("nope.steps=5", "field nope: 'nope' is unknown; allowed: schema_version, seed, data"),
        ("train.steps.x=5", "train.steps.x: train.steps is a field, no section; allowed: train.steps=VALUE\n"),
        ("train..steps=5", "field train.: '' is unknown"),
        ("train.steps=true", "train.steps: 'true'"),
        ("train=5", "train: is a section; allowed: its fields, e.g. train.steps=VALUE\n"),
        ("train.steps=" + "[" * 3000, "train.steps: '[["),
        ("train.steps=" + "[" * 800 + "]" * 800, "train.steps: "),
        ("tokenizer.patch_sides=" + "[" * 3000, "tokenizer.patch_sides: '[["),
        ("train.steps=" + "9" * 30, "is too large; allowed: at most 9,223,372,036,854,775,807"),
        ("train.steps=" + "9" * 9000, "train.steps: '999"),
        ("train.base_lr=1e300", "train.base_lr: 1e300 is too large; allowed: at most 1e+100"),
        ("model.mlp_ratio=1e999", "model.mlp_ratio: 1e999 is too large"),
        ("model.pattern=" + "a" * 20_000, "model.pattern: a text of 20,000 characters; allowed: at most 10,000"),
        ("n" * 20_000 + "=1", "is unknown; allowed: "),
        ("n" * 20_000, "set: 'nnn"),
        ("data.root=/d/\udcff", "data.root: '/d/\\udcff' is not UTF-8; allowed: a name that is"),
    ],
)  # fmt: skip
def test_settings_that_are_none(setting, message, tmp_path, capsys):
    command = ["run", "mixers", "--preset", "smoke", "--results", str(tmp_path / "results"), "--set"]
    assert main([*command, setting]) == USER_ERROR
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mvar: error: ") and err.count("\n") == 1 and len(err) < 1000
    assert message in err and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["train.steps=5", "train.steps=6"], {"train.steps": "6"}),
        (["runtime.accumulate=4", "train.accumulate=2"], {"train.accumulate": "2"}),
        (["sample.cfg_scale=3", "seed=1", "cfg_scale=2"], {"seed": "1", "cfg_scale": "2"}),
    ],
)
def test_of_a_field_that_is_given_twice_the_last_counts(given, found):
    """Under any of its names."""
    assert parse_overrides(given) == found


def test_no_value_of_a_path_is_no_folder():
    (request,) = Run(sweeps=("mixers",), preset="smoke", set=(("train.init_from=none",),)).requests()
    assert request.config.train.init_from is None


# Budgets and seeds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["nan", "-1", "-1e5", "inf", "-inf", "1e999", "0", "", "1e15x", "0x10", "NaN"])
@pytest.mark.parametrize("joined", [True, False])
def test_budgets_that_are_none(text, joined, tmp_path, capsys):
    words = [f"--budget={text}"] if joined else ["--budget", text]
    assert main(["run", "mixers", "--preset", "smoke", "--dry-run", "--results", str(tmp_path), *words]) == USER_ERROR
    err = capsys.readouterr().err
    assert (
        err
        == f"mvar: error: budget: {text!r} is no number of FLOPs; allowed: a positive number such as 1e15, or none\n"
    )


@pytest.mark.parametrize(
    ("words", "budget"),
    [
        (["--budget", "1e9"], 1e9),
        (["--budget", ".5e10"], 5e9),
        (["--budget=1e9"], 1e9),
        (["--budget"], None),
        (["--budget", "--dry-run"], None),
    ],
)
def test_budgets(words, budget):
    (request,) = parse(["run", "mixers", "--preset", "smoke", *words]).requests()
    assert request.mode == "budget" and request.budget_flops == budget


def test_a_budget_alone_before_the_sweep():
    assert with_budget_value(["run", "--budget", "mixers"]) == ["run", "--budget=baseline", "mixers"]


@pytest.mark.parametrize("text", ["1e300", "1e30"])
def test_a_budget_that_nobody_can_spend(text, tmp_path, capsys):
    command = ["run", "mixers", "--preset", "smoke", "--dry-run", "--results", str(tmp_path), "--budget", text]
    assert main(command) == USER_ERROR
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and len(err) < 300
    assert f"{MAX_STEPS:,} steps" in err and f"budget: {float(text):g} FLOPs are" in err


@pytest.mark.parametrize("what", ["seeds", "sample-seeds"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1e9", "'1e9' is neither"),
        ("1000000000", f"1,000,000,000 of them; allowed: at most {MAX_SEEDS:,}"),
        ("9" * 50, "is neither"),
        (",".join(map(str, range(MAX_SEEDS + 1))), f"{MAX_SEEDS + 1:,} of them"),
        (f"1,{2**63}", f"{2**63} is too large; allowed: seeds up to {2**63 - 1}"),
        ("٣", "is neither"),
        ("", "'' is neither"),
        ("-1", "'-1' is neither"),
        ("0", "0 is no count"),
    ],
)
def test_seeds_that_are_none(what, text, message, tmp_path, capsys):
    command = ["run", "mixers", "--preset", "smoke", "--dry-run", "--results", str(tmp_path), f"--{what}={text}"]
    assert main(command) == USER_ERROR
    err = capsys.readouterr().err
    assert err.startswith(f"mvar: error: {what}: ") and message in err and err.count("\n") == 1 and len(err) < 400


def test_too_many_sets_of_images(tmp_path, capsys):
    command = ["run", "mixers", "--preset", "smoke", "--dry-run", "--results", str(tmp_path)]
    assert main([*command, "--seeds", "500", "--sample-seeds", "500"]) == USER_ERROR
    assert "500 times 500 sets of images a cell; allowed: at most 10,000" in capsys.readouterr().err


def test_seeds_as_people_type_them():
    (request,) = Run(sweeps=("mixers",), preset="smoke", seeds="0, 4 ,7", sample_seeds="2,").requests()
    assert request.seeds == (0, 4, 7) and request.sample_seeds == (2,)


# Surroundings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"), [("", OK), (" ", OK), ("1", OK), ("abc", USER_ERROR), ("9" * 5000, USER_ERROR)]
)
def test_world_size(text, code, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", text)
    assert main(["run", "mixers", "--preset", "smoke", "--dry-run", "--results", str(tmp_path)]) == code
    err = capsys.readouterr().err
    assert err == "" if code == OK else (err.startswith("mvar: error: WORLD_SIZE: ") and err.count("\n") == 1)


def test_version(capsys):
    assert main(["--version"]) == OK
    assert capsys.readouterr().out == f"mvar {__version__}\n"


NO_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(NO_ROOT) and not shutil.which("setpriv"), reason="root may write everywhere")
@pytest.mark.parametrize("words", [["status"], ["report"], ["run", "mixers", "--preset", "smoke"]])
def test_results_that_may_only_be_read(words, tmp_path):
    results = tmp_path / "results"
    run = Store(results).run(PRESETS["smoke"].run_id)
    run.write_config(PRESETS["smoke"])
    run.write_status("failed", "train", reason="x")
    folders = [results, *(path for path in results.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    command = [*NO_ROOT, sys.executable, "-m", "mvar.cli", *words, "--results", str(results)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    for folder in folders:
        folder.chmod(0o755)
    assert "Traceback" not in ended.stderr
    if words == ["status"]:
        assert ended.returncode == OK and ended.stderr == "" and "1 failed" in ended.stdout
    else:
        assert ended.returncode != OK and ended.stderr.count("\n") == 1
        assert ended.stderr.startswith("mvar: error: ") and str(results) in ended.stderr


# Dry runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (45.4, "45 s"),
        (12 * 86400.0, "12 days"),
        (9 * 365.25 * 86400, "3,287 days"),
        (10 * 365.25 * 86400, "more than 10 years"),
        (1e300, "more than 10 years"),
        (float("inf"), "more than 10 years"),
        (float("nan"), "more than 10 years"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def planned(monkeypatch, capsys, root: Path, *words: str) -> list[str]:
    monkeypatch.setattr("mvar.runs.clock.step_rate", lambda config: 1e6)  # FLOP/s
    command = ["run", "mixers", "--preset", "smoke", "--dry-run", "--workers", "1", "--results", str(root), *words]
    assert main(command) == OK
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_counts_training_once(monkeypatch, capsys, tmp_path):
    once = planned(monkeypatch, capsys, tmp_path)
    thrice = planned(monkeypatch, capsys, tmp_path, "--sample-seeds", "3")
    assert sum(line.startswith("│") for line in once) == sum(line.startswith("│") for line in thrice) == 4
    flops = next(line for line in once if line.startswith("4 runs, ")).removeprefix("4 runs, ")
    assert f"4 runs, 12 evaluations, {flops}" in thrice
    (request,) = Run(sweeps=("mixers",), preset="smoke").requests()
    left_s = sum(run_flops(config) + 2 * sampling_flops(config) for config in request.configs()) / 1e6
    assert any(line.startswith(f"to do: about {duration(left_s)} on 1 worker(s)") for line in thrice)


def test_a_dry_run_does_not_count_what_is_trained(monkeypatch, capsys, tmp_path):
    (request,) = Run(sweeps=("mixers",), preset="smoke").requests()
    for config in request.configs():
        run = Store(tmp_path).run_of(config)
        run.write_config(config)
        run.weights.write_bytes(b"weights")
    left_s = sum(map(sampling_flops, request.configs())) / 1e6
    lines = planned(monkeypatch, capsys, tmp_path)
    assert any(line.startswith(f"to do: about {duration(left_s)} on 1 worker(s)") for line in lines)


def test_a_dry_run_of_ages(monkeypatch, capsys, tmp_path):
    lines = planned(monkeypatch, capsys, tmp_path, "--set", "train.steps=1e12")
    assert any(line.startswith("to do: about more than 10 years on 1") for line in lines)
    assert not any("days" in line for line in lines)
