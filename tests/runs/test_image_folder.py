"""A folder of pictures through the real command line: from files to a report in colour, and a user's mistakes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.cli import main
from mvar.errors import OK, USER_ERROR
from mvar.presets import PRESETS
from mvar.runs.store import Store
from mvar.tokenizer.model import Tokenizer

COLOURS = {"blue": (40, 60, 220), "green": (50, 200, 60), "red": (220, 50, 40)}
SIZES = [(20, 24), (33, 18), (16, 16), (40, 31), (18, 50)]  # height, width
SETTINGS = {
    "data.name": "imagefolder",
    "data.channels": 3,
    "data.num_classes": 3,
    "data.image_size": 16,
    "data.hflip": "true",
    "tokenizer.patch_sides": "[1,2,4]",
    "tokenizer.channel_multipliers": "[1,1,2]",
    "tokenizer.width": 8,
    "tokenizer.vocab_size": 32,
    "tokenizer.train.steps": 120,
    "tokenizer.train.batch_size": 16,
    "tokenizer.train.base_lr": 0.06,
    "model.depth": 2,
    "model.width": 16,
    "model.mamba.headdim": 16,
    "train.steps": 30,
    "train.base_lr": 0.05,
    "train.batch_size": 16,
    "train.crops": 2,
    "evaluation.num_images": 24,
    "evaluation.classifier_steps": 10,
    "evaluation.kid_subset_size": 8,
}


def make_folder(root: Path, classes=tuple(COLOURS), per_class: int = 20) -> Path:
    """Pictures of noise around a colour of each class, in several sizes and formats."""
    rng = np.random.default_rng(0)
    for name in classes:
        for i in range(per_class):
            height, width = SIZES[i % len(SIZES)]
            pixels = np.array(COLOURS[name]) + rng.normal(0, 15, (height, width, 3))
            path = root / name / ("deeper" if i % 2 else ".") / f"{i}.{'png' if i % 3 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return root


def command(root: Path, results: Path, *last: str, **changes) -> list[str]:
    settings = SETTINGS | {"data.root": root} | changes
    texts = [f"{name}={value}" for name, value in settings.items()]
    return [*last, "--preset", "smoke", "--results", str(results), "--set", *texts]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of pictures and the results of a sweep on it."""
    place = tmp_path_factory.mktemp("folder")
    root = make_folder(place / "pictures")
    assert main(command(root, place / "results", "submit", "mixers", "--cluster", "inprocess")) == OK
    return root, place / "results"


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_from_pictures_to_a_report_in_colour(made, capsys):
    _, results = made
    store = Store(results)
    runs = store.runs()
    assert len(runs) == 4
    (tokens,) = results.glob("stages/tokens-*")
    shapes = {split: json.loads((tokens / split / "meta.json").read_text())["shape"] for split in ("train", "heldout")}
    assert shapes["heldout"][0] == 15 and shapes["train"][0] == 2 * 45  # two crops an image
    for run in runs:
        config = run.config()
        drawn = np.load(run.samples(config.evaluation_id) / "samples.npz")
        assert drawn["arr_0"].shape == (24, 16, 16, 3) and np.bincount(drawn["labels"]).tolist() == [8, 8, 8]
        spread = np.ptp(drawn["arr_0"].mean((1, 2)), axis=1)  # between the channels of an image's mean colour
        assert np.median(spread) > 60
        with Image.open(run.samples(config.evaluation_id) / "grid.png") as grid:
            assert grid.mode == "RGB"
        metrics = run.evaluations()[config.evaluation_id]["metrics"]
        assert {"eval/fid", "eval/nll_bits_per_token", "eval/copy_rate", "eval/label_accuracy"} <= set(metrics)
    assert main(["report", "--results", str(results)]) == OK
    assert "warning" not in capsys.readouterr().err
    assert "imagefolder" in (results / "report" / "report.md").read_text()
    table = (results / "report" / "tables" / "runs.csv").read_text()
    assert all(run.name in table for run in runs)
    picture = results / "grid.png"
    assert main(["sample", runs[0].name, "--classes", "0,2", "--out", str(picture), "--results", str(results)]) == OK
    with Image.open(picture) as grid:
        assert np.ptp(np.asarray(grid.convert("RGB"), dtype=int).mean((0, 1))) > 10


def empty(root: Path) -> str:
    shutil.rmtree(root)
    root.mkdir()
    return "has no class subfolders; allowed: a folder with one subfolder of images a class"


def one_class(root: Path) -> str:
    for name in ("blue", "green"):
        shutil.rmtree(root / name)
    return "has one class only ('red'); allowed: two or more"


def truncated(root: Path) -> str:
    path = root / "red" / "4.png"
    path.write_bytes(path.read_bytes()[:-60])
    return "red/4.png is not a readable image"


@pytest.mark.parametrize("damage", [empty, one_class, truncated], ids=lambda damage: damage.__name__)
def test_mistakes_are_one_line_and_touch_no_finished_run(made, tmp_path, capsys, damage):
    root, results = made
    shutil.copytree(root, tmp_path / "pictures")
    message = damage(tmp_path / "pictures")
    finished = snapshot(results / "runs")
    # two stages beside each other: both may find the same damage
    assert main(command(tmp_path / "pictures", results, "run", "mixers", "--workers", "1")) == USER_ERROR
    err = capsys.readouterr().err
    (line,) = (line for line in err.splitlines() if line.startswith("mvar: error:"))
    assert "data.root" in line and str(tmp_path / "pictures") in line and message in line
    assert "Traceback" not in err
    assert {path: state for path, state in snapshot(results / "runs").items() if path in finished} == finished


WRONG_DATA = [
    ({"data.num_classes": 2}, "data.num_classes: 2 does not fit", "which has 3 classes; allowed: 3"),
    ({"data.root": "$NOWHERE/pictures"}, "data.root: $NOWHERE/pictures is not a folder", "one subfolder of images a"),
    ({"data.heldout_root": "/nowhere"}, "data.heldout_root: /nowhere is not a folder", "one subfolder of images a"),
    ({"evaluation.num_images": 5}, "evaluation.num_images: 5 is too few", "allowed: 10 or more"),
]


@pytest.mark.parametrize("words", [["run", "mixers"], ["submit", "mixers", "--cluster", "inprocess"]], ids=" ".join)
@pytest.mark.parametrize(("changes", "begin", "end"), WRONG_DATA, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_found_before_anything_is_launched(made, tmp_path, capsys, words, changes, begin, end):
    results = tmp_path / "results"
    assert main(command(made[0], results, *words, **changes)) == USER_ERROR
    err = capsys.readouterr().err
    assert err.startswith(f"mvar: error: {begin}") and end in err and err.count("\n") == 1
    assert not list(results.glob("*"))


def test_too_few_heldout_images_are_found_before_training(tmp_path, capsys):
    root, results = make_folder(tmp_path / "pictures", per_class=3), tmp_path / "results"
    assert main(command(root, results, "submit", "mixers", "--cluster", "inprocess")) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "reference images: 3 images are too few; allowed: 4 or more" in line and "data.heldout_fraction" in line
    assert not list(results.rglob("metrics.jsonl"))


def test_a_plan_is_made_without_images_but_not_with_wrong_ones(made, tmp_path, capsys):
    root, results = made
    dry = command(root, tmp_path / "results", "run", "mixers", "--dry-run", **{"data.num_classes": 2})
    assert main(dry) == USER_ERROR and "data.num_classes: 2 does not fit" in capsys.readouterr().err
    dry = command(root, tmp_path / "results", "run", "mixers", "--dry-run", **{"data.root": tmp_path / "gone"})
    assert main(dry) == OK
    out, err = capsys.readouterr()
    assert "4 runs, " in out
    assert err.startswith(f"mvar: warning: data.root: {tmp_path / 'gone'} is not here") and err.count("\n") == 1
    # what is finished needs its images no more
    moved = root.with_name("moved")
    root.rename(moved)
    try:
        assert main(command(root, results, "run", "mixers")) == OK
        assert "4 of 4 runs done" in capsys.readouterr().out
        run = Store(results).runs()[0].name
        assert main(["evaluate", run, "--set", "sample.cfg_scale=3", "--results", str(results)]) == USER_ERROR
        assert capsys.readouterr().err.startswith(f"mvar: error: data.root: {root} is not a folder")
    finally:
        moved.rename(root)


def test_the_preset_for_own_images_needs_folder_and_classes_only(tmp_path, capsys):
    """README's command, as it stands there."""
    root, results = make_folder(tmp_path / "pictures", per_class=2), tmp_path / "results"
    settings = [f"data.root={root}", "data.num_classes=3"]
    arguments = ["run", "mixers", "--preset", "imagefolder64", "--results", str(results), "--set", *settings]
    assert main([*arguments, "--dry-run"]) == OK
    assert "4 runs, " in capsys.readouterr().out and not results.exists()
    other = ["data.image_size=128", "tokenizer.channel_multipliers=[1,1,2,2,4]"]
    assert main([*arguments, *other, "--dry-run"]) == OK
    assert main([*arguments, other[0], "--dry-run"]) == USER_ERROR
    assert "data.image_size: 128 px does not fit the tokenizer" in capsys.readouterr().err


def test_the_tokenizer_of_that_preset_fits_its_images():
    config = PRESETS["imagefolder64"]
    tokenizer = Tokenizer(config.tokenizer, config.data.channels).eval()
    tokens = tokenizer.encode(torch.zeros(1, 3, 64, 64))
    assert tokens.shape == (1, config.token_space.schedule.num_tokens)
    assert tokenizer.decode(tokenizer.quantize.latents(tokens)[-1]).shape == (1, 3, 64, 64)
    assert sum(p.numel() for p in tokenizer.parameters()) == pytest.approx(17e6, rel=0.01)
