"""`mvar attention` on runs and on the official checkpoints: what it prints and writes, and what it says of mistakes."""

import json

import numpy as np
import pytest
import torch
from official import GOLDEN, load_model
from PIL import Image
from safetensors.torch import load_file, save_file
from untrained_runs import finish_tokenizer, save_untrained

from mvar.checkpoints import published
from mvar.cli import main
from mvar.config import override
from mvar.data.crops import to_float
from mvar.errors import OK, USER_ERROR
from mvar.presets import PRESETS
from mvar.probes.attention_mass import attention_stats
from mvar.runs.store import Store
from mvar.runs.wiring import Stages

VAR, MVAR = (GOLDEN / case / "state.safetensors" for case in ("var_l2", "mvar_l2"))
TOKENIZER = GOLDEN / "tok_full_q4" / "vae.safetensors"
SIDES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two runs whose models are only initialised: one with global attention, one without."""
    root = tmp_path_factory.mktemp("attention") / "results"
    store = Store(root)
    for pattern in ("global", "intra"):
        config = override(PRESETS["smoke"], {"model.pattern": pattern, "data.heldout_fraction": 0.05})
        save_untrained(store, config)
        finish_tokenizer(store, config)
        Stages(config, store).tokens.run()
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten classes of two pictures each."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(20):
        path = root / f"class{number % 10}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (80, 70, 3), dtype=np.uint8)).save(path)
    return root


def written(folder):
    return {path.name for path in folder.iterdir() if path.name.startswith("attention")}


FILES = {"attention.json", "attention_images.npy"} | {
    f"attention_{name}.{kind}" for name in ("flow", "heads", "layers") for kind in ("png", "pdf")
}


def test_a_run(results, capsys):
    assert main(["attention", "digits-d4-w32-global", "--results", str(results)]) == OK
    (run,) = (results / "runs").glob("digits-d4-w32-global-*")
    assert written(run) >= FILES
    stats, out = json.loads((run / "attention.json").read_text()), capsys.readouterr().out
    assert f"own scale: {stats['share']:.1%} of attention mass" in out and f"{stats['num_images']} images" in out
    rows = [line.split() for line in out.splitlines() if line.split() and line.split()[0] in ("0", "1", "2", "3")]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert all(sum(map(float, row[5:])) == pytest.approx(100, abs=0.21) for row in rows)


@pytest.mark.slow
def test_other_settings_leave_the_reports_file_alone(results, tmp_path):
    run = next((results / "runs").glob("digits-d4-w32-global-*"))
    assert main(["attention", run.name, "--results", str(results)]) == OK
    before = (run / "attention.json").read_bytes()
    command = ["attention", run.name, "--results", str(results), "--images", "5", "--batch", "2"]
    assert main(command) == OK
    assert main([*command, "--source", "self", "--set", "cfg_scale=3", "--out", str(tmp_path / "here")]) == OK
    assert (run / "attention.json").read_bytes() == before
    (folder,) = (results / "attention").iterdir()
    for found in (folder, tmp_path / "here"):
        assert written(found) == FILES
        assert np.load(found / "attention_images.npy").shape == (5, 4, 2, 4, 5)


def test_a_checkpoint_on_images(pictures, tmp_path, capsys):
    command = ["attention", "--checkpoint", str(VAR), "--tokenizer", str(TOKENIZER), "--images-from", str(pictures)]
    assert main([*command, "--images", "10", "--out", str(tmp_path)]) == OK
    found = json.loads((tmp_path / "attention.json").read_text())
    _, model, _, _ = load_model("var_l2")
    tokenizer = published.load_tokenizer(TOKENIZER, patch_sides=SIDES)
    crops, labels = [], []
    for number in range(0, 20, 2):  # evenly spread: the first of each class
        path = sorted(pictures.glob("*/*.png"), key=lambda p: (p.parent.name, p.name))[number]
        picture = Image.open(path).resize((72, 82), Image.Resampling.LANCZOS)
        crops.append(np.asarray(picture)[9:73, 4:68].transpose(2, 0, 1))
        labels.append(number // 2)
    inputs = tokenizer.quantize.inputs(tokenizer.encode(to_float(np.stack(crops))))
    expected = attention_stats(model, [(torch.tensor(labels), inputs)])
    torch.testing.assert_close(torch.tensor(found["mean"]), expected.mean.float(), rtol=0, atol=1e-5)
    assert "state, 10 images (heldout)" in capsys.readouterr().out


def test_a_checkpoint_on_its_own_images(tmp_path, capsys):
    command = ["attention", "--checkpoint", str(VAR), "--tokenizer", str(TOKENIZER), "--source", "self"]
    command += ["--results", str(tmp_path), "--images", "3", "--picture"]
    assert main([*command, "2"]) == OK
    (folder,) = (tmp_path / "attention").iterdir()
    drawn = {f"attention_{name}.{kind}" for name in ("growth", "map", "query") for kind in ("png", "pdf")}
    assert written(folder) == FILES | drawn and folder.name.startswith("state-self-")
    measured = json.loads((folder / "attention.json").read_text())["measured"]
    assert measured["sample"]["cfg_scale"] == 1.5 and measured["sample"]["top_k"] == 900  # the READMEs' for FID
    for wrong in (["10"], ["2", "--layer", "7"], ["2", "--head", "3"], ["2", "--query", "30"]):
        capsys.readouterr()
        assert main([*command, *wrong]) == USER_ERROR
        assert "allowed: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run, checkpoint: neither is given"),
        (["digits-d4-w32-global", "--checkpoint", "x"], "run, checkpoint: both are given"),
        (["digits-d4-w32-global", "--images", "-1"], "images: -1; allowed: 1 or more"),
        (["digits-d4-w32-global", "--images-from", "x"], "images-from: only for --checkpoint"),
        (["digits-d4-w32-global", "--set", "cfg_scale=2"], "sampling, set: only for images that are drawn"),
        (["digits-d4-w32-intra"], "model.pattern: 'intra' has no global layer"),
        (["nope"], "run: 'nope' is unknown"),
        (["--checkpoint", str(VAR)], "tokenizer: not given"),
        (["--checkpoint", str(VAR), "--tokenizer", str(TOKENIZER)], "images-from: ''"),
        (["--checkpoint", "nope.pth", "--tokenizer", str(TOKENIZER), "--source", "self"], "checkpoint: no file"),
        (["--checkpoint", str(MVAR), "--tokenizer", str(TOKENIZER), "--source", "self"], "do not fit the generator's"),
    ],
)
def test_mistakes(results, capsys, arguments, message):
    assert main(["attention", *arguments, "--results", str(results)]) == USER_ERROR
    complaint = capsys.readouterr().err
    assert message in complaint and complaint.count("\n") == 1


def test_a_folder_with_other_classes_is_refused(tmp_path, pictures, capsys):
    fewer = tmp_path / "fewer"
    for name in ("a", "b"):
        (fewer / name).mkdir(parents=True)
        Image.new("RGB", (80, 80)).save(fewer / name / "0.png")
    command = ["attention", "--checkpoint", str(VAR), "--tokenizer", str(TOKENIZER), "--images-from", str(fewer)]
    assert main([*command, "--results", str(tmp_path)]) == USER_ERROR
    assert "has 2 classes" in capsys.readouterr().err


def test_a_tokenizer_of_other_codes_is_refused(tmp_path, capsys):
    state = load_file(TOKENIZER)
    state["quantize.embedding.weight"] = torch.zeros(7, 8)
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(4, 7)
    save_file(state, tmp_path / "other.safetensors")
    command = ["attention", "--checkpoint", str(VAR), "--tokenizer", str(tmp_path / "other.safetensors")]
    assert main([*command, "--source", "self", "--results", str(tmp_path)]) == USER_ERROR
    assert "do not fit the generator's" in capsys.readouterr().err
