"""`mvar config`: what it shows is what runs are made with, and what it says is allowed is so."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field

from mvar import registry
from mvar.cli import main
from mvar.config import Config, MambaConfig, RunConfig, override, stored_config
from mvar.config.allowed import typed
from mvar.config.described import CHANGES, FieldFacts, fields_of, resolved
from mvar.config.parsing import DERIVED
from mvar.errors import OK, USER_ERROR
from mvar.presets import PRESETS
from mvar.registries import KINDS, METRICS, SOURCES
from mvar.runs.store import Store

ROOT = Path(__file__).parents[1]
DIGITS = PRESETS["digits"]
PLUGIN = """
from typing import Literal

from pydantic import Field

import mvar


@mvar.register("guidance", "late")
class Late(mvar.Guidance):
    class Settings(mvar.Config):
        power: float = Field(default=1.5, gt=0, le=8, description="Of the position.")
        sides: tuple[int, ...] = (1, 2)
        form: Literal["cosine", "line"] | None = None

    def weight(self, scale, num_scales, cfg_scale, settings):
        return cfg_scale
"""


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["config", *arguments]) == OK
    return capsys.readouterr().out


def facts(name: str, config: RunConfig = DIGITS) -> FieldFacts:
    (found,) = fields_of(config, name)
    return found


# show ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("digits", []),
        ("imagenet512-d36", []),
        ("smoke", ["model.pattern=mamba:32 3*global", "train.base_lr=1e-5", "seed=3"]),
        ("smoke", ["data.name=torchvision", "data.root=/no", "data.torchvision.dataset=KMNIST"]),
        ("smoke", ["data.name=tar", "data.root=é\ttab", "data.tar.key=no"]),
        ("smoke", ["sample.guidance=interval", "sample.filter=min_p", "sample.interval.low=0.5"]),
    ],
)
def test_what_is_shown_is_the_config(preset, settings, capsys):
    arguments = ["show", "--preset", preset, *(["--set", *settings] if settings else [])]
    config = override(PRESETS[preset], dict(setting.split("=", 1) for setting in settings))
    values = yaml.safe_load(shown(capsys, *arguments))
    assert values == json.loads(shown(capsys, *arguments, "--json"))
    found, unknown = stored_config(values)
    assert unknown == () and found.runtime == config.runtime
    for identity in ("run_id", "evaluation_id", "key", "data_id", "tokenizer_id"):
        assert getattr(found, identity) == getattr(config, identity)


def test_settings_of_what_is_used_are_shown_in_full(capsys):
    used = ["data.name=torchvision", "data.root=/d", "data.torchvision.dataset=KMNIST", "data.tar.key=unused"]
    data = yaml.safe_load(shown(capsys, "show", "--set", *used))["data"]
    assert data["torchvision"] == {
        "dataset": "KMNIST",
        "train_split": "train",
        "heldout_split": "test",
        "download": False,
    }
    assert "tar" not in data and "torchvision" not in yaml.safe_load(shown(capsys, "show"))["data"]


def test_settings_of_a_metric_are_shown_and_read_again(monkeypatch):
    class Density:
        class Settings(Config):
            k: int = Field(default=3, ge=1)

    monkeypatch.setitem(METRICS.own, "density", Density)
    config = override(DIGITS, {"evaluation.density.k": "5"})
    assert resolved(config)["evaluation"]["density"] == {"k": 5}
    found, unknown = stored_config(resolved(config))
    assert unknown == () and found.evaluation.settings_of("density").k == 5
    assert "density" not in resolved(DIGITS)["evaluation"]


def test_a_run_is_shown_by_the_beginning_of_its_id_and_by_its_directory(tmp_path, capsys):
    config = override(DIGITS, {"seed": 4, "train.steps": 7})
    run = Store(tmp_path).run(config.run_id)
    run.write_config(config)
    for name in (run.name[:9], str(run.path)):
        assert yaml.safe_load(shown(capsys, "show", name, "--results", str(tmp_path))) == resolved(config)
    changed = yaml.safe_load(shown(capsys, "show", str(run.path), "--set", "train.steps=9"))
    assert changed == resolved(override(config, {"train.steps": 9}))


def test_a_run_whose_plug_in_is_missing_is_shown(tmp_path, monkeypatch, capsys):
    class Striped:
        class Settings(Config):
            width_px: int = 2

    with monkeypatch.context() as known:
        known.setitem(SOURCES.own, "striped", Striped)
        config = override(DIGITS, {"data.name": "striped", "data.striped.width_px": 3})
        Store(tmp_path).run(config.run_id).write_config(config)
        run_id = config.run_id
    data = yaml.safe_load(shown(capsys, "show", run_id, "--results", str(tmp_path)))["data"]
    assert data["name"] == "striped" and data["striped"] == {"width_px": 3}


def test_a_plug_in_is_named_beside_the_config_and_not_in_it(tmp_path, capsys):
    (tmp_path / "late.py").write_text(PLUGIN)
    plugged = ["--plugin", str(tmp_path / "late.py"), "--set", "sample.guidance=late"]
    assert main(["config", "show", *plugged]) == OK
    out, err = capsys.readouterr()
    assert err.startswith("plug-ins: late (")
    assert yaml.safe_load(out)["sample"]["late"] == {"power": 1.5, "sides": [1, 2], "form": None}
    assert shown(capsys, "fields", "sample.late", *plugged).splitlines() == [
        "sample.late.power = 1.5 (number, above 0, at most 8)",
        "    Of the position.",
        "sample.late.sides = 1,2 (list of whole numbers)",
        "    ",
        "sample.late.form = none (cosine, line, or none)",
        "    ",
    ]


# fields -------------------------------------------------------------------------------------------------------------


def leaves(values: dict, where: str = "") -> set[str]:
    return {
        leaf
        for name, value in values.items()
        for leaf in (leaves(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}"})
    }


def test_every_field_is_there_once_and_takes_its_default_as_it_is_printed():
    found = fields_of(DIGITS)
    names = [field.name for field in found]
    assert len(names) == len(set(names))
    settings = {name for name in names if name not in leaves(DIGITS.model_dump(mode="json"))} - CHANGES.keys()
    assert set(names) - settings == leaves(DIGITS.model_dump(mode="json")) | CHANGES.keys()
    assert settings >= {"data.torchvision.dataset", "sample.interval.low", "sample.min_p.p"}
    assert CHANGES.keys() == set(DERIVED)
    for field in found:
        assert field.description and field.allowed
        if field.default is not None or field.name not in settings:
            beside = {"model.replace": "none"} if field.name == "model.replacement" else {}  # alone it is refused
            config = override(DIGITS, {field.name: typed(field.default), **beside})
            assert config.run_id == DIGITS.run_id and config.evaluation_id == DIGITS.evaluation_id, field.name


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("seed", "whole number, 0 or more"),
        ("data.name", ", ".join(SOURCES.names())),
        ("data.root", "path, or none"),
        ("data.channels", "1, 3"),
        ("data.heldout_fraction", "number, above 0, below 1"),
        ("data.pad_px", "whole number, 0 to 256"),
        ("data.hflip", "true, false"),
        ("data.torchvision.dataset", "text"),
        ("tokenizer.patch_sides", "list of whole numbers"),
        ("tokenizer.channel_multipliers", "list of whole numbers, each 1 or more, at least 1 of them"),
        ("train.weight_decay_end", "number, 0 or more, or none"),
        ("train.precision", "fp32, bf16, fp16"),
        ("sample.filter", "top, min_p"),
        ("sample.interval.high", "number, 0 to 1"),
        ("evaluation.extractor", "classifier, inception, mobilenet"),
        ("model.init_head", "number"),
        ("model.pattern", "mixers of every layer, of global, intra, mamba, markov, window, linear, gla, gdn, conv"),
    ],
)
def test_what_is_allowed(name, allowed):
    assert facts(name).allowed == allowed


def test_types_that_have_no_schema_and_settings_without_fields(monkeypatch):
    class Odd:
        class Settings(Config):
            call: Callable[[], int] | None = None
            either: int | Literal["all"] = Field(default="all", description="How many.")
            inside: tuple[float, float] = (0.0, 1.0)

    class Empty:
        class Settings(Config):
            pass

    monkeypatch.setitem(METRICS.own, "odd", Odd)
    monkeypatch.setitem(METRICS.own, "empty", Empty)
    assert [(field.name, field.allowed) for field in fields_of(DIGITS, "evaluation.odd")] == [
        ("evaluation.odd.call", "any value, or none"),
        ("evaluation.odd.either", "whole number, or all"),
        ("evaluation.odd.inside", "list of numbers, 2 of them"),
    ]
    assert fields_of(DIGITS, "evaluation.empty") == []


def test_defaults_are_those_of_the_preset(capsys):
    lines = shown(capsys, "fields", "--preset", "fashion32-small", "--set", "data.tar.key=kind").splitlines()
    assert lines[0] == (
        "Defaults are those of preset fashion32-small and --set; of settings that it does not give, their own."
    )
    assert "model.mamba.d_state = 32 (whole number, 1 or more)" in lines
    assert "data.tar.key = kind (text)" in lines and "data.tar.label = cls (text like ^[a-z0-9_]+$)" in lines


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("model.mamba", [f"model.mamba.{name}" for name in MambaConfig.model_fields]),
        ("sample.min_p", ["sample.min_p.p"]),
        ("cfg_scale", ["sample.cfg_scale"]),  # a short name that `--set` takes too
        ("model.replace", ["model.replace"]),
        ("data.tar", ["data.tar.label", "data.tar.key"]),
    ],
)
def test_fields_of_a_prefix(prefix, names, capsys):
    found = json.loads(shown(capsys, "fields", prefix, "--json"))
    assert [field["name"] for field in found] == names
    assert all(field.keys() == {"name", "default", "allowed", "description"} for field in found)


# presets ------------------------------------------------------------------------------------------------------------


def test_presets(capsys):
    head, *lines = shown(capsys, "presets").splitlines()
    assert head.split() == ["preset", "data", "pixels", "tokens", "depth", "width", "steps", "batch"]
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert lines[0].split() == ["digits", "digits", "8", "30", "8", "64", "240", "32"]
    rows = json.loads(shown(capsys, "presets", "--json"))
    assert [row["preset"] for row in rows] == list(PRESETS)
    assert (rows[0]["tokens"], rows[0]["steps"], rows[0]["batch"]) == (30, 240, 32)


# Mistakes, and torch ------------------------------------------------------------------------------------------------

MISTAKES = [
    (["frob"], "invalid choice 'frob'"),
    (["show", "--preset", "digit"], "preset: 'digit' is unknown (did you mean 'digits'?); allowed: digits, smoke"),
    (["show", "nope"], "run: 'nope' is unknown; allowed: none"),
    (["show", "nope", "--preset", "digits"], "preset: 'digits' beside run 'nope'; allowed: one of them"),
    (["show", "--set", "model.depht=4"], "'depht' is unknown (did you mean 'depth'?)"),
    (["show", "--set", "model.depth=0"], "model.depth: 0: Input should be greater than or equal to 1"),
    (["show", "--set", "depth"], "'depth' is not FIELD=VALUE"),
    (["fields", "modle"], "field: 'modle' is unknown (did you mean 'model'?); allowed: schema_version, seed, data"),
    (["fields", "model.mamba.d"], "field model.mamba: 'd' is unknown; allowed: d_state, d_conv, expand, headdim"),
    (["fields", "train.steps.x"], "fields: train.steps is a field, no section; allowed: train.steps"),
    (["fields", "data.tra"], "field data: 'tra' is unknown (did you mean 'tar'?)"),
    (["fields", "sample.ramp"], "sample.ramp: sample.guidance 'ramp' has no settings"),
    (["presets", "digits"], "presets: digits is of no use; allowed: mvar config show --preset NAME shows one"),
    (["show", "--plugin", "no.py"], "plugin: no Python file 'no.py'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    assert main(["config", *arguments, "--results", str(tmp_path)]) == USER_ERROR
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mvar: error: ") and err.count("\n") == 1
    assert message in err


QUICK = """
import sys
from mvar.cli import main
from mvar.config import ModelConfig
from mvar.registries import MIXERS

assert main(sys.argv[1:]) == 0
slow = MIXERS.paths.keys() - MIXERS.without_settings - ModelConfig.model_fields.keys()  # mixers with settings of theirs
assert "torch" not in sys.modules or (slow and sys.argv[1:] == ["config", "fields"])
"""


@pytest.mark.parametrize(
    "arguments",
    ["presets", "show", "show --set sample.filter=min_p", "fields sample", "fields model.mamba", "fields"],
)
def test_it_does_without_torch(arguments):
    ended = subprocess.run(
        [sys.executable, "-c", QUICK, "config", *arguments.split()], cwd=ROOT, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_to_have_no_settings_has_none(kind):
    known = KINDS[kind]
    assert known.without_settings <= known.paths.keys()
    for name in known.without_settings:
        assert getattr(registry.loaded(known.paths[name]), "Settings", None) is None


# Documentation ------------------------------------------------------------------------------------------------------


def documented() -> list[tuple[str, list[str]]]:
    """Each `mvar config` of docs/configuration.md, with the lines that it prints."""
    blocks = (ROOT / "docs/configuration.md").read_text().split("```")[1::2]
    found = [part.splitlines() for block in blocks for part in block.split("$ ")[1:]]
    return [(command, lines) for command, *lines in found if command.startswith("mvar config ")]


@pytest.mark.parametrize(("command", "lines"), documented(), ids=[command for command, _ in documented()])
def test_the_page_shows_what_is_printed(command, lines, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = main(shlex.split(command)[1:])
    out, err = capsys.readouterr()
    printed = iter((out if code == OK else err).splitlines())
    for line in lines:
        if line != "...":  # what is left out
            start = line.removesuffix("...")
            assert any(found == line or (start != line and found.startswith(start)) for found in printed), line
    assert lines[-1].endswith("...") or next(printed, None) is None


def test_the_page_has_every_command():
    assert {command.split()[2] for command, _ in documented()} == {"presets", "fields", "show"}


def test_a_file_is_shown_whole(tmp_path, capsys):
    """As `mvar run --config` would make it, with what --set changes."""
    file = tmp_path / "run.yaml"
    file.write_text("preset: smoke\nseed: 3\ntrain: {steps: 40}\n")
    found = yaml.safe_load(shown(capsys, "show", "--config", str(file), "--set", "model.depth=2"))
    assert (found["seed"], found["train"]["steps"], found["model"]["depth"]) == (3, 40, 2)
    assert found["tokenizer"]["vocab_size"] == PRESETS["smoke"].tokenizer.vocab_size
    assert "train.steps = 40" in shown(capsys, "fields", "train.steps", "--config", str(file))
    for words, said in (
        (["show", "digits", "--config", str(file)], f"config: {str(file)!r} beside run 'digits'; allowed: one of them"),
        (["show", "--preset", "digits", "--config", str(file)], f"preset: 'digits', and {file} says 'smoke'; allowed"),
        (["presets", "--config", str(file)], "is of no use"),
        (["show", "--config", str(tmp_path / "no.yaml")], "cannot be read"),
    ):
        assert main(["config", *words]) == USER_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
