"""`mvar inspect | sample | evaluate | export` on checkpoint files: the same weights, the same images and numbers."""

from pathlib import Path

import pytest
import torch

from mvar.checkpoints.published import load_generator, load_tokenizer, official_state, write_official
from mvar.checkpoints.weights import load_weights
from mvar.cli import main
from mvar.config import override
from mvar.errors import OK, USER_ERROR
from mvar.presets import PRESETS
from mvar.runs.documents import read_document
from mvar.runs.pipeline import execute
from mvar.runs.states import DONE
from mvar.runs.store import Store

EVALUATION = {"evaluation.num_images": 40, "evaluation.classifier_steps": 8, "evaluation.kid_subset_size": 10}
TINY = {
    "tokenizer.train.steps": 8,
    "tokenizer.width": 8,
    "tokenizer.vocab_size": 16,
    "model.depth": 2,
    "model.width": 16,
    "model.num_heads": 2,
    "model.mamba.headdim": 16,
    "model.pattern": "intra+mamba",
    "train.steps": 5,
    "train.batch_size": 8,
    "runtime.threads": 1,
}
CONFIG = override(PRESETS["smoke"], TINY | EVALUATION)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A finished run in `results`, its generator and tokenizer exported beside it."""
    root = tmp_path_factory.mktemp("published")
    assert execute(CONFIG, Store(root / "results")) == DONE
    place = ["--results", str(root / "results")]
    assert main(["export", CONFIG.run_id, "--out", str(root / "mvar.pth"), *place]) == OK
    assert main(["export", CONFIG.run_id, "--out", str(root / "vae.pth"), "--what", "tokenizer", *place]) == OK
    return root


def files(root):
    return ["--checkpoint", str(root / "mvar.pth"), "--tokenizer", str(root / "vae.pth")]


def settings(values):
    return ["--set", *(f"{name}={value}" for name, value in values.items())]


def test_inspect_says_what_is_inside(root, capsys):
    assert main(["inspect", str(root / "mvar.pth")]) == OK
    assert (
        "M-VAR: 2 layers (intra+mamba), width 16, 2 heads, qk-norm off, shared AdaLN off, 10 classes, scales 1-2-3-4, "
        "16 codes of 8 channels"
    ) in capsys.readouterr().out
    assert main(["inspect", str(root / "vae.pth")]) == OK
    assert "tokenizer: 16 codes of 8 channels, scales 1-2-3-4, 1 image channels" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_an_exported_file_carries_its_whole_configuration(suffix, root, tmp_path, capsys):
    """Two heads that nothing in the weights tells, and what no key tells of the tokenizer."""
    model, vae = str(tmp_path / f"m.{suffix}"), str(tmp_path / f"v.{suffix}")
    assert main(["export", CONFIG.run_id, "--out", model, *place(root)]) == OK
    assert main(["export", CONFIG.run_id, "--out", vae, "--what", "tokenizer", *place(root)]) == OK
    capsys.readouterr()
    assert main(["inspect", model]) == OK
    out = capsys.readouterr().out
    assert "2 heads" in out and "assumed" not in out
    assert load_generator(model)[1].config == CONFIG.model
    assert load_tokenizer(vae).config == CONFIG.tokenizer
    common = ["--classes", "3", "--per-class", "2", "--seed", "4", "--sampling", "fid"]
    as_files = ["--checkpoint", model, "--tokenizer", vae]
    assert main(["sample", CONFIG.run_id, *common, "--out", str(tmp_path / "a.png"), *place(root)]) == OK
    assert main(["sample", *as_files, *common, "--out", str(tmp_path / "b.png")]) == OK
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.slow
def test_one_of_two_models_is_chosen_by_name(root, tmp_path, capsys):
    """Through every command: the name goes with the path into the config of what is evaluated."""
    state = torch.load(root / "mvar.pth", weights_only=True)
    mean = {k: -2 * t if t.is_floating_point() else t for k, t in state.items()}
    torch.save({"model": state, "ema": mean}, tmp_path / "pair.pth")
    torch.save(mean, tmp_path / "mean.pth")
    vae, pair = ["--tokenizer", str(root / "vae.pth")], ["--checkpoint", str(tmp_path / "pair.pth"), "--num-heads", "2"]
    assert main(["inspect", str(tmp_path / "pair.pth"), "--num-heads", "2"]) == USER_ERROR
    assert "holds 2 generators: 'model', 'ema'; allowed: one of them, by --weights ema" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "pair.pth"), "--num-heads", "2", "--weights", "ema"]) == OK
    images = {}
    for name, files in {
        "ema": [*pair, "--weights", "ema"],
        "mean": ["--checkpoint", str(tmp_path / "mean.pth"), "--num-heads", "2"],
        "model": [*pair, "--weights", "model"],
    }.items():
        out = ["--classes", "1", "--per-class", "1", "--out", str(tmp_path / f"{name}.png")]
        assert main(["sample", *files, *vae, *out]) == OK
        images[name] = (tmp_path / f"{name}.png").read_bytes()
    assert images["ema"] == images["mean"] != images["model"]
    results = ["--results", str(tmp_path / "results")]
    common = ["evaluate", *pair, *vae, "--preset", "smoke", *settings(EVALUATION), *results]
    assert main(common) == USER_ERROR
    assert main([*common, "--weights", "ema"]) == OK
    (run,) = Store(tmp_path / "results").runs()
    assert run.config().train.init_from.endswith("pair.pth#ema")
    written = load_weights(run.weights)[0]
    assert torch.equal(written["word_embed.weight"], mean["word_embed.weight"])


def test_sampling_from_files_gives_the_images_of_the_run(root, tmp_path, capsys):
    common = ["--classes", "3,7", "--per-class", "2", "--seed", "4"]
    as_run = settings({"cfg_scale": 1.5, "top_k": 5, "top_p": 0.9})
    assert main(["sample", CONFIG.run_id, *common, *as_run, "--out", str(tmp_path / "a.png"), *place(root)]) == OK
    assert main(["sample", *files(root), *common, *as_run, "--out", str(tmp_path / "b.png")]) == OK
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "M-VAR: 2 layers" in capsys.readouterr().out


def test_published_settings_by_name(root, tmp_path):
    from mvar.commands.checkpoint import sampling_preset

    assert sampling_preset("fid") | {"cfg_scale": 1.5, "top_k": 900, "top_p": 0.96} == sampling_preset("fid")
    assert not sampling_preset("fid")["more_smooth"] and sampling_preset("visual")["more_smooth"]
    out = ["--classes", "1", "--per-class", "1", "--out", str(tmp_path / "g.png")]
    assert main(["sample", *files(root), *out, "--sampling", "visual"]) == OK


def place(root):
    return ["--results", str(root / "results")]


@pytest.mark.slow
def test_evaluating_files_gives_the_metrics_of_the_run(root, tmp_path, capsys):
    """Through the one pipeline, in a worker: FID, likelihood and the rest, equal to the last digit."""
    results = ["--results", str(tmp_path / "results")]
    arguments = ["evaluate", *files(root), "--preset", "smoke", *settings(EVALUATION), *results]
    assert main(arguments) == OK
    (run,) = Store(tmp_path / "results").runs()
    config = run.config()
    assert (config.train.steps, config.model) == (0, CONFIG.model.model_copy(update={"drop_path": 0.0}))
    expected = Store(root / "results").run(CONFIG.run_id).evaluations()[CONFIG.evaluation_id]
    found = run.evaluations()[config.evaluation_id]
    assert found["metrics"] == expected["metrics"]
    assert found["cost"]["train_flops"] == 0 and found["cost"]["num_params"] == expected["cost"]["num_params"]
    out = capsys.readouterr().out
    assert "eval/fid" in out and "layers 0-1 loaded; nothing initialised anew" in out
    start = read_document(run.path / "start.json")
    assert start["loaded_layers"] == [0, 1] and len(start["sha256"]) == 64
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert main(arguments) == OK  # done is not repeated
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.slow
def test_a_run_is_evaluated_again_with_other_settings(root, capsys):
    store = Store(root / "results")
    arguments = ["evaluate", CONFIG.run_id, "--set", "sample.cfg_scale=3", "sample.top_k=4", *place(root)]
    assert main(arguments) == OK
    evaluations = store.run(CONFIG.run_id).evaluations()
    assert len(evaluations) == 2 and CONFIG.evaluation_id in evaluations
    assert {record["sample"]["cfg_scale"] for record in evaluations.values()} == {1.5, 3.0}
    assert len(store.runs()) == 1


@pytest.mark.usefixtures("undrawn")
def test_a_hybrid_starts_from_the_checkpoint(root):
    """The paper's "From VAR to M-VAR", the other way round: one layer kept, one new, trained on."""
    store = Store(root / "results")
    hybrid = override(
        CONFIG, {"model.pattern": "global intra+mamba", "train.init_from": str(root / "mvar.pth"), "train.steps": 1}
    )
    assert hybrid.run_id != CONFIG.run_id
    assert execute(hybrid, store) == DONE
    start = read_document(store.run(hybrid.run_id).path / "start.json")
    assert (start["loaded_layers"], start["new_layers"]) == ([1], [0])
    assert main(["report", *place(root)]) == OK
    report = (root / "results" / "report" / "report.md").read_text()
    assert f"`{hybrid.run_id}` starts from mvar.pth: layers 1 loaded; layers 0 initialised anew" in report
    assert "blocks.0.attn.proj.weight" in load_weights(store.run(hybrid.run_id).weights)[0]


def mistakes(root):
    other = root / "other.pth"
    torch.save({"conv1.weight": torch.zeros(2)}, other)
    cut = root / "cut.pth"
    cut.write_bytes((root / "mvar.pth").read_bytes()[:-3000])
    wide = root / "wide.pth"
    state = torch.load(root / "vae.pth", weights_only=True)
    torch.save(dict(state) | {"quantize.embedding.weight": torch.zeros(32, 8)}, wide)
    plain = root / "plain.pth"
    torch.save(dict(torch.load(root / "mvar.pth", weights_only=True)), plain)
    model, vae, heads = str(root / "mvar.pth"), str(root / "vae.pth"), ["--num-heads", "2"]
    evaluation = ["evaluate", "--checkpoint", model, "--tokenizer", vae, *heads]
    return [
        (["sample"], "neither is given; allowed: one of RUN and --checkpoint FILE"),
        (["sample", CONFIG.run_id, "--checkpoint", model], "both are given"),
        (["sample", model], f"run: {model!r} is a file; allowed: a run, or --checkpoint {model} --tokenizer FILE"),
        (["explore", model, "--out", str(root / "e.html")], f"allowed: a run, or --checkpoint {model}"),
        (["sample", "--checkpoint", model], "tokenizer: not given"),
        (["sample", "--checkpoint", str(plain), "--tokenizer", vae], "allowed: give num_heads"),
        (["sample", *files(root), "--weights", "ema"], "weights: 'ema' names no one generator"),
        (["sample", "--checkpoint", str(root / "no.pth"), "--tokenizer", vae], "no file"),
        (["sample", "--checkpoint", str(cut), "--tokenizer", vae], "truncated or damaged"),
        (["sample", "--checkpoint", str(other), "--tokenizer", vae], "holds no generator of VAR or M-VAR"),
        (["sample", "--checkpoint", vae, "--tokenizer", vae], "it holds a tokenizer"),
        (["sample", "--checkpoint", model, "--tokenizer", model, *heads], "tokenizer: "),
        (["sample", "--checkpoint", model, "--tokenizer", str(wide), *heads], "its codebook (32 codes"),
        (["sample", *files(root), "--patch-sides", "1,2,4,5"], "does not fit"),
        (["sample", *files(root), "--patch-sides", "a"], "patch-sides: 'a'"),
        (["sample", *files(root), "--classes", "10"], "class: '10' is unknown"),
        (["sample", *files(root), "--sampling", "fidd"], "sampling: 'fidd' is unknown (did you mean 'fid'?)"),
        (["sample", *files(root), "--set", "candidates=4"], "sample.candidates: needs a classifier"),
        (evaluation, "data.num_classes: 1000"),
        ([*evaluation, "--preset", "smok"], "preset: 'smok' is unknown (did you mean 'smoke'?)"),
        (["evaluate", CONFIG.run_id, "--set", "model.depth=3"], "model.depth would be another run"),
        (["evaluate", CONFIG.run_id, "--tokenizer", vae], "a run has its own"),
        (["inspect", str(other)], "holds no generator"),
        (["export", CONFIG.run_id, "--out", str(root / "x.bin")], "allowed: a name that ends in .pth or .safetensors"),
        (["export", "nope", "--out", str(root / "x.pth")], "run: 'nope' is unknown"),
    ]


def test_mistakes_are_one_line_and_touch_nothing(root, capsys):
    before = {path: path.read_bytes() for path in (root / "results").rglob("*") if path.is_file()}
    for arguments, message in mistakes(root):
        capsys.readouterr()
        where = [] if arguments[0] == "inspect" else place(root)
        assert main([*arguments, *where]) == USER_ERROR, arguments
        _, err = capsys.readouterr()
        assert err.startswith("mvar: error: ") and err.count("\n") == 1 and message in err, (arguments, err)
    assert before == {path: path.read_bytes() for path in (root / "results").rglob("*") if path.is_file()}


def test_export_of_a_mixed_model_is_refused(root, tmp_path):
    from mvar.errors import UserError
    from mvar.transformer import ScaleTransformer

    model, facts = load_generator(root / "mvar.pth", num_heads=2)
    mixed = facts.config.model_copy(update={"pattern": "global intra+mamba"})
    with pytest.raises(UserError, match="official code has no model"):
        write_official(tmp_path / "x.pth", official_state(ScaleTransformer(mixed, facts.space)))
    assert model.config.pattern == "intra+mamba" and not (tmp_path / "x.pth").exists()
