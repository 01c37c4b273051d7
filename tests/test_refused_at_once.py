"""What is refused after minutes of work is refused before any."""

import pytest
import torch
from untrained_runs import finish_tokenizer, save_untrained

from mvar.checkpoints.published import official_state, write_official
from mvar.cli import main
from mvar.config import RunConfig, override
from mvar.errors import OK, USER_ERROR
from mvar.presets import PRESETS
from mvar.runs.states import DONE
from mvar.runs.store import Store
from mvar.transformer import ScaleTransformer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results directory with one run and its tokenizer, weights as they were drawn; and the run's config."""
    config = override(PRESETS["smoke"], {"data.num_classes": 4, "model.pattern": "global 2*intra global"})
    store = Store(tmp_path_factory.mktemp("trained") / "results")
    run, _ = save_untrained(store, config, ["zero", "one", "two", "three"])
    run.write_status(DONE, "evaluate")
    finish_tokenizer(store, config)
    return store, config


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """No weights are loaded and nothing is measured or made."""

    def fail(*args, **options):
        pytest.fail("work has begun")

    for name in (
        "mvar.runs.stages.train.trained_generator",
        "mvar.runs.gallery.draw_images",
        "mvar.api.trained_files.published",
    ):
        monkeypatch.setattr(name, fail)
    monkeypatch.setattr("mvar.probes.attention_kept.measure", fail)
    monkeypatch.setattr("mvar.runs.runner.run_all", fail)


def complaint(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mvar: error: ")
    return err.removeprefix("mvar: error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--picture", "99"], "picture: 99; allowed: classes 0 to 3"),
        (["--picture", "4"], "picture: 4; allowed: classes 0 to 3"),
        (["--picture", "-2"], "picture: -2; allowed: 0 or more"),
        (["--picture", "1", "--layer", "1"], "layer: '1' is unknown; allowed: 0, 3"),
        (["--picture", "1", "--layer", "4"], "layer: '4' is unknown; allowed: 0, 3"),
        (["--picture", "1", "--head", "9"], f"head: 9; allowed: 0 to {PRESETS['smoke'].model.num_heads - 1}"),
        (["--picture", "1", "--query", "30"], "query: 30; allowed: 0 to 29"),
        (["--head", "-7"], "head: -7; allowed: 0 or more"),
    ],
)
@pytest.mark.parametrize("source", ["heldout", "self"])
def test_a_picture_that_cannot_be_drawn(words, message, source, trained, nothing_is_loaded, capsys):
    store, config = trained
    command = ["attention", config.run_id, "--results", str(store.root), "--source", source]
    assert main([*command, *words]) == USER_ERROR
    assert message in complaint(capsys)


def test_a_picture_of_a_checkpoint(trained, nothing_is_loaded, tmp_path, capsys):
    store, config = trained
    path = tmp_path / "g.safetensors"
    config = override(config, {"model.pattern": "global"})  # the same tokenizer
    model = ScaleTransformer(config.model, config.token_space)
    write_official(path, official_state(model), {"config": config.model_dump(mode="json")})
    tokenizer = store.stage("tokenizer", config.tokenizer_id).path / "tokenizer.safetensors"
    command = ["attention", "--checkpoint", str(path), "--tokenizer", str(tokenizer), "--source", "self"]
    assert main([*command, "--picture", "4", "--results", str(tmp_path)]) == USER_ERROR
    assert complaint(capsys) == "picture: 4; allowed: classes 0 to 3"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/grid.png", "there is no folder"),
        (".", "is a folder; allowed: a file"),
        ("file/grid.png", "there is no folder"),
        ("/proc/grid.png", "out: /proc cannot be written in ("),
    ],
)
def test_a_place_that_cannot_be_written(place, message, trained, nothing_is_loaded, tmp_path, capsys):
    store, config = trained
    (tmp_path / "file").write_text("")
    command = ["sample", config.run_id, "--results", str(store.root), "--out", str(tmp_path / place)]
    assert main(command) == USER_ERROR
    said = complaint(capsys)
    assert said.startswith("out: ") and message in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_an_unknown_class_is_refused_before_weights_are_loaded(trained, nothing_is_loaded, tmp_path, capsys):
    store, config = trained
    command = ["sample", config.run_id, "--results", str(store.root), "--out", str(tmp_path / "grid.png")]
    assert main([*command, "--classes", "one,ten"]) == USER_ERROR
    assert complaint(capsys) == "class: 'ten' is unknown; allowed: zero, one, two, three"


# Files that a config names ------------------------------------------------------------------------------------------


MISSING = [
    ("train.init_from", "{}/none.pth", []),
    ("train.init_from", "{}/none.pth#ema", []),
    ("train.init_from", "{}", []),
    ("tokenizer.checkpoint", "{}/none.pth", []),
    ("tokenizer.checkpoint", "{}/none.pth#ema", []),
    ("evaluation.inception_weights", "{}/none.pth", ["evaluation.extractor=inception"]),
    ("evaluation.inception_weights", "$NOT_SET_ANYWHERE", ["evaluation.extractor=inception"]),
]


@pytest.mark.parametrize("command", [["run"], ["submit", "--cluster", "local"]])
@pytest.mark.parametrize(("field", "path", "more"), MISSING)
def test_a_file_that_is_not_there(command, field, path, more, nothing_is_loaded, tmp_path, capsys):
    setting = f"{field}={path.format(tmp_path)}"
    words = [*command, "mixers", "--preset", "smoke", "--results", str(tmp_path / "results"), "--set", setting, *more]
    assert main(words) == USER_ERROR
    said = complaint(capsys)
    assert said.startswith(f"{field}: no file '") and path.format(tmp_path).partition("#")[0] in said
    assert not list(tmp_path.glob("results/*/*"))
    assert main([*words, "--dry-run"]) == OK
    out, err = capsys.readouterr()
    assert "4 runs" in out and err.count("\n") == 1
    assert err.startswith(f"mvar: warning: {field}: no file '") and err.endswith("a run would fail\n")


def test_weights_that_are_not_set(nothing_is_loaded, tmp_path, capsys):
    words = [
        "run",
        "mixers",
        "--preset",
        "smoke",
        "--results",
        str(tmp_path),
        "--set",
        "evaluation.extractor=inception",
    ]
    assert main(words) == USER_ERROR
    assert "evaluation.inception_weights: not set" in complaint(capsys)


def test_evaluate_looks_at_files_too(trained, nothing_is_loaded, tmp_path, capsys):
    store, config = trained
    words = ["evaluate", config.run_id, "--results", str(store.root), "--set", "evaluation.extractor=inception"]
    assert main([*words, f"evaluation.inception_weights={tmp_path}/none.pth"]) == USER_ERROR
    assert f"evaluation.inception_weights: no file '{tmp_path}/none.pth'" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_checkpoint_of_other_sizes(suffix, nothing_is_loaded, tmp_path, capsys):
    config = PRESETS["smoke"]
    torch.manual_seed(0)
    path = tmp_path / f"g.{suffix}"
    told = {"config": config.model_dump(mode="json")}
    write_official(path, official_state(ScaleTransformer(config.model, config.token_space)), told)
    words = ["run", "mixers", "--preset", "smoke", "--results", str(tmp_path / "results"), "--set"]
    assert main([*words, f"train.init_from={path}", "model.width=64"]) == USER_ERROR
    assert f"train.init_from: {path} does not fit; model.width: 64 here, 32 in the checkpoint" in complaint(capsys)
    path.write_bytes(path.read_bytes()[:1000])
    assert main([*words, f"train.init_from={path}"]) == USER_ERROR
    assert complaint(capsys).startswith(f"train.init_from: {path}")


def test_what_is_made_needs_its_file_no_more(trained, tmp_path):
    from mvar.runs.launch.needed import check_files

    config: RunConfig = override(
        PRESETS["smoke"], {"train.init_from": "/none.pth", "tokenizer.checkpoint": "/none.pth"}
    )
    store = Store(tmp_path)
    store.run_of(config).write_config(config)
    store.run_of(config).weights.write_bytes(b"weights")
    stage = store.stage("tokenizer", config.tokenizer_id)
    stage.write_status(DONE, "tokenizer")
    (stage.path / "tokenizer.safetensors").write_bytes(b"weights")
    check_files([config], store)


# What was ignored without a word ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(
    "option", [("--weights", "ema"), ("--num-heads", "2"), ("--patch-sides", "1,2"), ("--tokenizer", "vae.pth")]
)
def test_what_tells_of_a_checkpoint_with_a_run(command, option, trained, nothing_is_loaded, capsys):
    store, config = trained
    assert main([command, config.run_id, "--results", str(store.root), *option]) == USER_ERROR
    name = option[0].removeprefix("--")
    assert complaint(capsys) == f"{name}: a run has its own; allowed: --{name} with --checkpoint only"


def test_a_list_of_no_classes(trained, nothing_is_loaded, tmp_path, capsys):
    store, config = trained
    command = ["sample", config.run_id, "--results", str(store.root), "--out", str(tmp_path / "grid.png")]
    assert main([*command, "--classes", ",, ,"]) == USER_ERROR
    assert complaint(capsys).startswith("classes: ',, ,' names none; allowed: ")
    assert not (tmp_path / "grid.png").exists()


def test_a_field_of_sampling_by_its_whole_name(trained):
    """`--set sample.top_p=0` is `--set top_p=0`: off, as the config has it."""
    from mvar.runs.gallery import with_sampling

    _, config = trained
    for name in ("top_p", "sample.top_p"):
        assert with_sampling(config, {name: "0"}).sample == config.sample.model_copy(update={"top_p": 0.0})


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["submit", "--cluster", "local"]])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["data.heldout_root=/x"],
            "data.heldout_root: data.name=digits has held-out images of its own; allowed: with ",
        ),
        (["model.width=1000000000000000000"], "model.width: 1,000,000,000,000,000,000 is too large; allowed: at most "),
        (["model.width=1000016"], "model.width: 1,000,016 is too large; allowed: at most 1,000,000"),
        (["train.steps=1000000000000001"], "train.steps: 1,000,000,000,000,001 is too large; allowed: at most "),
        (["tokenizer.vocab_size=1000000000"], "tokenizer.vocab_size: 1,000,000,000 is too large; allowed: at most "),
        (["model.mlp_ratio=1e90"], "model.mlp_ratio: "),
        (
            ["model.pattern=2*mamba:99999999 2*global"],
            "model.pattern: 'mamba:99999999': mamba.d_state: 99,999,999 is too large; allowed: at most 1,000,000",
        ),
        (["model.pattern=intra+mamba:d_conv=20000"], "model.pattern: 'mamba:d_conv=20000': mamba.d_conv: 20,000 is"),
    ],
)
def test_beyond_reason(command, settings, message, nothing_is_loaded, tmp_path, capsys):
    words = [*command, "mixers", "--preset", "smoke", "--results", str(tmp_path / "results"), "--set", *settings]
    assert main(words) == USER_ERROR
    assert complaint(capsys).startswith(message)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("axis", ["model.pattern=mamba,mamba:99999999", "train.steps=5,1e18"])
def test_beyond_reason_in_a_grid(axis, nothing_is_loaded, tmp_path, capsys):
    words = ["run", "--preset", "smoke", "--results", str(tmp_path / "results"), "--grid", axis, "--name", "mine"]
    assert main(words) == USER_ERROR
    assert "is too large; allowed: at most" in complaint(capsys) and not (tmp_path / "results").exists()


def test_bounds_are_of_launches_alone(tmp_path, capsys):
    """The bound itself is allowed, and a config that is stored is read whatever its sizes."""
    words = ["run", "mixers", "--dry-run", "--preset", "smoke", "--results", str(tmp_path), "--set"]
    assert main([*words, "model.width=1000000"]) == OK
    capsys.readouterr()
    stored = override(PRESETS["smoke"], {"model.width": 10**18, "data.heldout_root": "/x"})
    run = Store(tmp_path).run(stored.run_id)
    run.write_config(stored)
    assert run.config() == stored
