"""Data sets as commands find them at launch: said in a line, stored once, and read so that nothing mixes."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvar.cli import main
from mvar.commands.run import Run
from mvar.config import override
from mvar.data import survey as survey_module
from mvar.data.survey import survey
from mvar.errors import USER_ERROR, UserError, begin_command
from mvar.presets import OWN_IMAGES, PRESETS
from mvar.runs.launch.datasets import DataSets
from mvar.runs.store import Store


def noise(seed: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (66, 70, channels), dtype=np.uint8))


@pytest.fixture
def root(tmp_path) -> Path:
    begin_command()  # what an earlier one of this process has said, and where, does not matter
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            noise(10 * label + i).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def command(root: Path, *settings: str, dry_run: bool = False, sweep: str = "mixers") -> Run:
    fields = (f"data.root={root}", "data.num_classes=2", *settings)
    results = root.parent / "results"
    return Run(sweeps=(sweep,), preset="imagefolder64", set=(fields,), results=results, dry_run=dry_run)


def summaries(root: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((root.parent / "results").glob("stages/data-*/*"))]


def base(root: Path):
    return override(PRESETS["imagefolder64"], {"data.root": str(root), "data.num_classes": "2"})


@pytest.mark.parametrize("preset", sorted(OWN_IMAGES))
def test_the_number_of_classes_of_ones_own_images_is_found(root, capsys, preset):
    for label, name in enumerate(("owl", "2", "10")):
        (root / name).mkdir()
        for i in range(3):
            noise(100 + 10 * label + i).save(root / name / f"{i}.png")
    fields = (f"data.root={root}", "data.class_order=number")
    asked = Run(sweeps=("mixers",), preset=preset, set=(fields,), results=root.parent / "results")
    requests, configs, store = asked.planned()
    assert {config.data.num_classes for config in configs} == {5}
    assert requests[0].overrides["data.num_classes"] == "5"  # so that what is stored says it
    assert "(labels in order of number: 0 '2', 1 '10', 2 'cat', 3 'dog', 4 'owl')" in capsys.readouterr().out
    typed = Run(sweeps=("mixers",), preset=preset, set=((*fields, "data.num_classes=4"),), results=store.root)
    with pytest.raises(UserError, match=r"num_classes: 4 does not fit .* which has 5 classes"):
        typed.planned()
    assert not list(store.root.glob("runs/*"))


def test_a_published_recipe_says_how_many_classes_there_are(root):
    fields = (f"data.root={root}", f"data.heldout_root={root}")
    asked = Run(sweeps=("mixers",), preset="imagenet256-d12", set=(fields,), results=root.parent / "results")
    with pytest.raises(UserError, match="num_classes: 1000 does not fit"):
        DataSets(Store(asked.results)).check([asked.requests()[0].config])


# Sound data ---------------------------------------------------------------------------------------------------------


def test_sound_data_keep_their_ids_and_are_told_in_one_line(root, capsys):
    (root / "cat" / "notes.txt").write_text("x")
    requests, configs, _ = command(root).planned()
    assert {config.data for config in configs} == {base(root).data} and configs[0].data.reading == 1
    assert "data.reading" not in requests[0].overrides
    out, err = capsys.readouterr()
    assert out == (
        f"data: {root}: 10 training and 2 held-out images of 2 classes (labels in order of name: 0 'cat', "
        "1 'dog'); modes RGB 12; "
        "skipped 1 no pictures by their names; 0 of 2 held-out images compared are also training images\n"
    )
    assert not err
    (summary,) = summaries(root)
    (folder,) = (root.parent / "results" / "stages").iterdir()
    assert folder.name == f"data-{configs[0].data_id}"
    assert summary["skipped"] == {"no pictures by their names": 1} and summary["modes"] == {"RGB": 12}
    assert (summary["train"], summary["heldout"], summary["classes"]) == (10, 2, 2) and not summary["differs"]


def test_a_summary_is_stored_once_and_no_picture_is_opened_again(root, capsys, monkeypatch):
    command(root).planned()
    (path,) = (root.parent / "results").glob("stages/data-*/summary.json")
    first, before = capsys.readouterr(), path.stat().st_mtime_ns
    monkeypatch.setattr("mvar.data.pictures.Image.open", lambda *_, **__: pytest.fail("a picture was opened"))
    command(root).planned()
    assert capsys.readouterr() == first and path.stat().st_mtime_ns == before
    monkeypatch.undo()
    noise(99).save(root / "cat" / "new.png")
    path.write_text('{"schema_version": 1, "stamp": 7}')  # damaged: made again
    command(root).planned()
    assert "RGB 12" in first.out and summaries(root)[0]["modes"] == {"RGB": 13}


def test_a_plan_writes_nothing_and_digits_are_not_surveyed(root, capsys):
    command(root, dry_run=True).planned()
    assert "data: " in capsys.readouterr().out and not (root.parent / "results").exists()
    Run(sweeps=("mixers",), preset="digits", results=root.parent / "results").planned()
    assert capsys.readouterr() == ("", "") and not list((root.parent / "results").iterdir())


# Data that the first reading misreads -------------------------------------------------------------------------------


def loop(root: Path) -> str:
    os.symlink(".", root / "cat" / "latest")
    return "1 reached twice through links"


def transparent(root: Path) -> str:
    noise(1, 4).save(root / "cat" / "alpha.png")
    return "1 transparent pictures, put on white"


def rotated(root: Path) -> str:
    exif = Image.Exif()
    exif[0x0112] = 3
    noise(2).save(root / "cat" / "turned.jpg", exif=exif)
    return "1 pictures turned as their EXIF orientation says"


def left_out(root: Path) -> str:
    noise(3).save(root / "cat" / "moving.gif")
    return "1 in formats that were left out"


def empty(root: Path) -> str:
    (root / "dog" / "nothing.jpg").touch()
    return "1 empty"


def class_link(root: Path) -> str:
    os.symlink(".", root / "latest")
    return "1 reached twice through links"


UNSOUND = (loop, transparent, rotated, left_out, empty, class_link)


@pytest.mark.parametrize("spoil", UNSOUND, ids=lambda spoil: spoil.__name__)
def test_data_that_the_first_reading_misreads_get_the_second_and_never_mix(root, capsys, spoil):
    (sound,), before, store = command(root).planned()
    capsys.readouterr()
    reason = spoil(root)
    (request,), configs, _ = command(root).planned()
    assert {config.data for config in configs} == {base(root).data.model_copy(update={"reading": 2})}
    assert request.overrides["data.reading"] == "2" and request.name != sound.name
    for ids in ("run_id", "data_id", "tokenizer_id", "extractor_id", "evaluation_id", "floors_id"):
        assert not {getattr(c, ids) for c in configs} & {getattr(c, ids) for c in before}
    out, err = capsys.readouterr()
    assert out.count("\n") == err.count("\n") == 1
    told = f"mvar: warning: data.root: {root} is read by data.reading=2, with run ids of their own: "
    assert err.startswith(told) and reason in err
    assert len(summaries(root)) == 2  # of each reading one
    # what is stored keeps its reading, and says so
    if spoil is class_link:  # the first reading takes it for a class: these results are not of these folders
        with pytest.raises(UserError, match="has 3 classes"):
            DataSets(store, stored=True).check(before[:1])
        return
    DataSets(store, stored=True).check(before[:1])
    err = capsys.readouterr().err
    assert "is read as by the first version, otherwise than data.reading=2 would: " in err and reason in err
    assert err.count("\n") == 1


def overlap(root: Path) -> Path:
    """A held-out folder of ten images a class, one of which is a training image in another format."""
    for name in ("cat", "dog"):
        (root.parent / "val" / name).mkdir(parents=True)
        for i in range(10):
            noise(1000 + i + 100 * (name == "dog")).save(root.parent / "val" / name / f"{i}.png")
    Image.open(root / "cat" / "0.png").save(root.parent / "val" / "cat" / "twin.bmp")
    return root.parent / "val"


def test_images_in_both_sets_are_counted_and_the_reading_is_the_second(root, capsys):
    heldout = overlap(root)
    _, configs, _ = command(root, f"data.heldout_root={heldout}").planned()
    assert configs[0].data.reading == 2
    out, err = capsys.readouterr()
    assert "; 1 of 21 held-out images compared are also training images" in out and f"{root} and {heldout}: 12 " in out
    assert "1 held-out images that are also training images, left out of the near-copies' threshold" in err
    assert summaries(root)[0]["overlap"] == 1


def test_of_large_sets_a_sample_is_looked_at_and_that_is_said(root, monkeypatch):
    data = base(root).data.model_copy(update={"heldout_root": str(overlap(root))})
    os.replace(root.parent / "val" / "cat" / "twin.bmp", root.parent / "val" / "cat" / "twin.txt")
    (root.parent / "val" / "cat" / "twin.png").write_bytes((root / "cat" / "0.png").read_bytes())
    whole = survey(data)
    monkeypatch.setattr(survey_module, "SAMPLE", 8)
    monkeypatch.setattr(survey_module, "_same_pixels", lambda *_: pytest.fail("all were decoded"))
    found = survey(data)
    assert (found.train, found.heldout) == (whole.train, whole.heldout) == (12, 21)
    assert found.looked_at == sum(found.modes.values()) == 7 and "RGB 7 of 7 looked at" in found.line(data)
    assert (found.overlap, found.compared) == (1, 21) == (whole.overlap, whole.compared)
    monkeypatch.setattr(survey_module, "HELDOUT_SAMPLE", 3)
    assert survey(data).compared == 3


@pytest.mark.parametrize(("sample", "total"), [(survey_module.SAMPLE, 12 + 21 + 12 + 21), (8, 7 + 21)])
def test_how_far_the_look_is(root, monkeypatch, sample, total):
    """Headers and comparisons: all of a small set, of a large one those of the sample."""
    data = base(root).data.model_copy(update={"heldout_root": str(overlap(root))})
    os.replace(root.parent / "val" / "cat" / "twin.bmp", root.parent / "val" / "cat" / "twin.txt")
    (root.parent / "val" / "cat" / "twin.png").write_bytes((root / "cat" / "0.png").read_bytes())
    monkeypatch.setattr(survey_module, "SAMPLE", sample)
    steps = []
    survey(data, progress=lambda *step: steps.append(step))
    assert steps == [(done, total) for done in range(1, total + 1)]


def test_a_reading_that_is_asked_for_is_kept(root, capsys):
    transparent(root)
    (request,), configs, _ = command(root, "data.reading=1").planned()
    assert {config.data.reading for config in configs} == {1} and request.overrides["data.reading"] == "1"
    assert "is read as by the first version" in capsys.readouterr().err


def test_results_without_their_data_keep_the_reading_that_they_were_made_with(root, capsys):
    transparent(root)
    _, configs, store = command(root).planned()
    root.rename(root.with_name("moved"))
    again = DataSets(store).settled(command(root).requests()[0])
    assert [c.run_id for c in again.configs()] == [c.run_id for c in configs]
    with pytest.raises(UserError, match=r"data\.root: .* is not a folder"):
        command(root).planned()
    capsys.readouterr()
    command(root, dry_run=True).planned()
    assert "is not here" in capsys.readouterr().err


def test_an_order_that_is_asked_for_is_not_warned_of(root, capsys):
    for old, new in (("cat", "9"), ("dog", "10")):
        (root / old).rename(root / new)
    command(root).planned()
    assert "data.class_order: name gives '10' label 0" in capsys.readouterr().err
    for order in ("name", "number"):
        command(root, f"data.class_order={order}").planned()
        assert not capsys.readouterr().err


# Refused before anything is launched --------------------------------------------------------------------------------


def same_folder(root: Path) -> tuple[str, list[str]]:
    return "is data.root; allowed: folders apart", [f"data.heldout_root={root}/"]


def linked_classes(root: Path) -> tuple[str, list[str]]:
    (root.parent / "val").mkdir()
    for name in ("cat", "dog"):
        os.symlink(root / name, root.parent / "val" / name)
    return "12 of 12 held-out images compared are also training", [f"data.heldout_root={root.parent / 'val'}"]


def two_forms(root: Path) -> tuple[str, list[str]]:
    for name, form in (("cat", "NFC"), ("dog", "NFD")):
        (root / name).rename(root / unicodedata.normalize(form, "caf\u00e9"))
    return "two class subfolders that are one name", []


def one_folder(root: Path) -> tuple[str, list[str]]:
    os.symlink("cat", root / "kitten")
    return "two class subfolders that are one folder: 'cat' and 'kitten'", ["data.num_classes=3"]


def cut_short(root: Path) -> tuple[str, list[str]]:
    data = (root / "dog" / "3.png").read_bytes()
    (root / "dog" / "3.png").write_bytes(data[: len(data) // 2])
    return "dog/3.png is not a readable image", []


def deep(root: Path) -> tuple[str, list[str]]:
    Image.fromarray(np.full((66, 66), 4000, np.uint16)).save(root / "dog" / "3.png")
    return "dog/3.png has more than 8 bits a channel", []


def long(root: Path) -> tuple[str, list[str]]:
    Image.new("L", (1_000_000, 1)).save(root / "dog" / "3.png")
    return "dog/3.png is too large (1,000,000 x 1 pixels, 72,000,000 x 72 with the shorter side resized)", []


REFUSED = (same_folder, linked_classes, two_forms, one_folder, cut_short, deep, long)


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_used_is_refused_in_one_line_before_any_work(root, capsys, spoil):
    message, settings = spoil(root)
    fields = [f"data.root={root}", "data.num_classes=2", *settings]
    results = str(root.parent / "results")
    assert main(["run", "mixers", "--preset", "imagefolder64", "--results", results, "--set", *fields]) == USER_ERROR
    out, err = capsys.readouterr()
    assert err.startswith("mvar: error: data.") and message in err and err.count("\n") == 1 and not out
    assert not list(Path(results).glob("*"))
    # a run that there is goes on, with a warning
    config = override(base(root), {name: value for name, _, value in (field.partition("=") for field in settings)})
    DataSets(Store(results), stored=True).check([config])
    assert "mvar: warning: data." in capsys.readouterr().err
