"""`mvar evaluate-tokenizer` on a run's tokenizer, on the file that it is exported to, and on other images."""

import json
import shutil

import numpy as np
import pytest
import torch
from mobilenet_weights import need_mobilenet
from official import GOLDEN
from PIL import Image
from sklearn.datasets import load_sample_images
from tiny_runs import CONFIG

from mvar.checkpoints.published import load_tokenizer
from mvar.cli import main
from mvar.config import override
from mvar.data.crops import to_float, to_uint8
from mvar.errors import OK, USER_ERROR
from mvar.evaluation.extractors.contract import kind_of
from mvar.evaluation.fidelity import frechet_distance

SCALES = len(CONFIG.tokenizer.patch_sides)


def answer(capsys, *words):
    assert main(["evaluate-tokenizer", *words, "--json"]) == OK
    return json.loads(capsys.readouterr().out)


def test_of_a_run_and_of_its_file(store, tmp_path, capsys):
    place, picture = ["--results", str(store.root)], tmp_path / "t.png"
    found = answer(capsys, CONFIG.run_id, "--out", str(picture), "--rows", "3", *place)
    quality = json.loads((store.stage("tokenizer", CONFIG.tokenizer_id).path / "quality.json").read_text())
    assert {name: found[name] for name in ("psnr_db", "codes_used")} == {
        name: quality[name] for name in ("psnr_db", "codes_used")
    }
    assert found["rfid"] == pytest.approx(store.floors(CONFIG)["floor/fid_reconstruction_heldout"], rel=1e-9)
    assert found["extractor_id"] == CONFIG.extractor_id and len(found["entropy_bits_by_scale"]) == SCALES
    with Image.open(picture) as image:
        side = 8 * (32 // 8) + 2  # enlarged, with a border
        assert image.size == ((1 + SCALES) * side + 2, 3 * side + 2)
    file = tmp_path / "vae.pth"
    assert main(["export", CONFIG.run_id, "--what", "tokenizer", "--out", str(file), *place]) == OK
    capsys.readouterr()
    share = f"data.heldout_fraction={CONFIG.data.heldout_fraction}"
    again = answer(capsys, str(file), "--data", "digits", "--set", share, "--rows", "0", *place)
    assert again["rfid"] is None and again["extractor_id"] is None
    assert {**again, **{name: found[name] for name in ("tokenizer", "rfid", "extractor_id")}} == found


def test_of_a_tokenizer_by_its_own_names(store, tmp_path, capsys):
    """Its id, which the report prints, its stage's name and its folder; features are those of a run that has it."""
    of_results = ["--rows", "0", "--results", str(store.root), "--images", "40"]
    stage = store.stage("tokenizer", CONFIG.tokenizer_id)
    wanted = answer(capsys, CONFIG.run_id, *of_results)
    for name in (CONFIG.tokenizer_id, stage.name):
        assert answer(capsys, name, *of_results) == wanted | {"tokenizer": name}
    folder = str(stage.path) + "/"  # wherever the results are that it lies in
    elsewhere = [*of_results, "--results", str(tmp_path / "elsewhere")]
    assert answer(capsys, folder, *elsewhere) == wanted | {"tokenizer": folder}
    shutil.rmtree(store.root / "runs")  # no run has it any more: by the default features, which are not there
    alone = answer(capsys, CONFIG.tokenizer_id, *of_results)
    assert alone == wanted | {"rfid": None, "extractor_id": None, "tokenizer": CONFIG.tokenizer_id}
    assert main(["evaluate", str(stage.path), *of_results[2:4]]) == USER_ERROR
    told = capsys.readouterr().err
    assert "is unknown" in told and "repair" not in told
    (stage.path / "config.json").unlink()
    assert main(["evaluate-tokenizer", CONFIG.tokenizer_id, *of_results]) == USER_ERROR
    assert "is not known; allowed: " in capsys.readouterr().err


def test_of_a_folder_of_pictures_and_as_a_table(store, tmp_path, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (9, 9), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    words = ["--data", str(tmp_path / "pictures"), "--images", "5", "--out", str(tmp_path / "t.png")]
    assert main(["evaluate-tokenizer", CONFIG.run_id, *words, "--results", str(store.root)]) == OK
    out = capsys.readouterr().out
    assert "5 images (imagefolder, all images, resized to 1.125 times the tokenizer's size and cropped): PSNR " in out
    assert "no rFID: classifier is not trained" in out
    assert "codes used" in out and "t.png: the image, then what is decoded after each scale" in out


@pytest.mark.slow
def test_of_a_published_tokenizer_on_pictures(tmp_path, capsys):
    """VAR's own form of it, real features: rFID, PSNR and codes are those of its reconstructions; crops are told."""
    need_mobilenet()
    file, folder, side = GOLDEN / "tok_full_q4" / "vae.safetensors", tmp_path / "pictures", 64
    for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            tile = photo[64 * (i % 3) : 64 * (i % 3) + side, 200 + 64 * (i // 3) : 200 + 64 * (i // 3) + side]
            Image.fromarray(tile).save(folder / name / f"{i}.png")
    features, out = ["--set", "evaluation.extractor=mobilenet"], tmp_path / "t.png"
    asked = [str(file), "--data", str(folder), "--out", str(out), "--rows", "2", "--results", str(tmp_path / "results")]
    cropped, whole = (answer(capsys, *asked, *features, *more) for more in ((), ("data.resize_factor=1",)))
    paths = [path for name in ("flower", "temple") for path in sorted((folder / name).iterdir())]
    images = torch.from_numpy(np.stack([np.moveaxis(np.array(Image.open(path)), -1, 0) for path in paths]))
    tokenizer = load_tokenizer(str(file)).eval()
    with torch.no_grad():
        tokens = tokenizer.encode(to_float(images))
        shown = to_uint8(tokenizer.decode(tokenizer.quantize.latents(tokens)[-1]))
    config = override(CONFIG, {"evaluation.extractor": "mobilenet", "data.channels": 3})
    judge = kind_of(config).load(tmp_path)
    assert whole["rfid"] == pytest.approx(frechet_distance(judge(shown)[0], judge(images)[0]), rel=1e-4)
    error = ((shown.double() - images) ** 2).mean().item()
    assert whole["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error))
    assert whole["codes_used"] == len(tokens.unique()) and whole["sides"] == [1, 2, 3, 4]
    assert whole["num_images"] == 12 and whole["extractor_id"]
    assert (cropped["resize_factor"], whole["resize_factor"]) == (1.125, 1.0)
    assert cropped["psnr_db"] != whole["psnr_db"]  # resized to 72 px and cut: a fifth of each picture is not looked at
    with Image.open(out) as picture:
        assert picture.size == (5 * (side + 2) + 2, 2 * (side + 2) + 2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([CONFIG.run_id, "--patch-sides", "1,2"], "patch-sides: a run has its own"),
        ([CONFIG.run_id, "--set", "train.steps=3"], "set: train.steps; allowed: fields of data, evaluation, runtime"),
        ([CONFIG.run_id, "--set", "data.image_size=32"], "set: data.image_size=32; allowed: the tokenizer's"),
        ([CONFIG.run_id, "--data", "nowhere"], "data: 'nowhere' is no folder and no data source"),
        ([CONFIG.run_id, "--rows", "-1"], "rows: -1; allowed: 0 to 1,000"),
        (["vae.pth"], "data: not given; allowed for a checkpoint: a folder of class subfolders, or a data source"),
        ([CONFIG.run_id, "--images", "-3"], "images: -3; allowed: 1 or more, or 0 for all"),
        (["nobody"], "run: 'nobody' is unknown"),
        ([f"tokenizer-{CONFIG.extractor_id}"], "run: 'tokenizer-"),
        ([f"extractor-{CONFIG.extractor_id}"], "is another stage; allowed: a run, a tokenizer's id or folder, a file"),
        ([], "tokenizer: not given; allowed: a run, whose tokenizer is meant; "),
    ],
)
def test_mistakes_are_a_line(made, capsys, words, reason):
    assert main(["evaluate-tokenizer", *words, "--results", str(made)]) == USER_ERROR
    assert reason in capsys.readouterr().err
