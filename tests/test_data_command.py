"""`mvar data check`: every picture is looked at once, what is wrong is named, and a second call goes on."""

import re
import shutil

import pytest
import torch
from layouts import LABELS, PIXELS, WRITERS, imagefolder, png, written

from mvar import layout
from mvar.checkpoints.published import official_state
from mvar.cli import main
from mvar.config import RunConfig, override
from mvar.data import checking
from mvar.data.arrays import ArrayPictures
from mvar.transformer import ScaleTransformer

CONFIG = override(RunConfig(), {"model.depth": 2, "model.width": 16, "model.num_heads": 2, "model.mamba.headdim": 16})
EXPECTED = ArrayPictures(PIXELS, LABELS, [str(i) for i in range(10)]).fingerprint(range(20))


def check(capsys, *arguments) -> tuple[int, str]:
    code = main(["data", "check", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out + captured.err


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imagefolder(tmp_path / "set")
    return tmp_path / "set"


def settings_of(name: str, config) -> list[str]:
    extra = config.model_dump(mode="json").get(name, {})
    return [f"data.root={config.root}", *(f"data.{name}.{key}={value}" for key, value in extra.items() if value)]


def test_a_sound_folder(folder, capsys):
    code, text = check(capsys, folder)
    assert code == 0 and "train: 20 images of 10 classes, 2 to 2 of each" in text
    assert "pixels 28 x 28: 20" in text and "modes L 20" in text and "broken: 0" in text and "duplicates: 0" in text
    assert "--decode finds what is broken behind them" in text and "fingerprint" not in text
    code, text = check(capsys, folder, "--decode")
    assert code == 0 and f"pixels' fingerprint: {EXPECTED}" in text and "--decode" not in text
    assert len(list((folder.parent / "results" / layout.CHECKS).glob("imagefolder-*.json"))) == 2


@pytest.mark.parametrize("kind", WRITERS)
def test_every_layout_has_one_fingerprint(kind, tmp_path, capsys):
    config = written(kind, tmp_path / "set")
    code, text = check(
        capsys, config.name, "--decode", "--results", tmp_path / "r", "--set", *settings_of(config.name, config)
    )
    assert code == 0 and f"pixels' fingerprint: {EXPECTED}" in text
    assert ("held-out images that are also training images: 20" in text) == (kind == "torchvision")


def test_what_is_broken_is_named_and_the_exit_code_says_so(folder, capsys):
    paths = sorted(folder.rglob("*.png"))
    paths[0].write_bytes(b"<html>not found</html>")
    paths[3].write_bytes(png(PIXELS[3])[:300])
    code, text = check(capsys, folder)
    assert code == 1 and "broken: 1" in text and str(paths[0]) in text and str(paths[3]) not in text
    code, text = check(capsys, folder, "--decode")
    assert code == 1 and "broken: 2" in text and str(paths[3]) in text and "fingerprint" not in text
    assert "pixels 28 x 28: 18" in text


def test_duplicates_by_bytes_and_by_pixels(folder, capsys):
    paths = sorted(folder.rglob("*.png"))
    shutil.copy(paths[0], paths[5])
    from PIL import Image

    Image.fromarray(PIXELS[2]).save(paths[7].with_suffix(".bmp"))
    names = [path.relative_to(folder).as_posix() for path in paths]
    code, text = check(capsys, folder)
    assert code == 0 and "duplicates: 1\n" in text and f"{names[0]} = {names[5]}" in text
    code, text = check(capsys, folder, "--decode")
    assert code == 0 and "duplicates: 2\n" in text and f"{names[2]} = {names[7][:-4]}.bmp" in text


def test_a_second_call_goes_on(folder, capsys, monkeypatch, tmp_path):
    looked, real = [], checking._looked_at

    def look(pictures, i, decode):
        if len(looked) == 7:
            raise KeyboardInterrupt
        looked.append(i)
        return real(pictures, i, decode)

    monkeypatch.setattr(checking, "_looked_at", look)
    monkeypatch.setattr("mvar.rows.RECORD_EVERY_S", 0)
    record = tmp_path / "seen"
    with pytest.raises(KeyboardInterrupt):
        checking.check_pictures(*opened(folder), False, record)
    assert len(looked) == 7
    monkeypatch.setattr(checking, "_looked_at", lambda *given: looked.append(given[1]) or real(*given))
    code, text = check(capsys, folder, "--record", record)
    assert code == 0 and "train: 20 images" in text and looked == list(range(20))
    again = check(capsys, folder, "--record", record)
    assert again == (code, text) and len(looked) == 20
    next(folder.rglob("*.png")).touch()  # other files than those that were looked at
    check(capsys, folder, "--record", record)
    assert len(looked) == 40


def opened(folder):
    from mvar.config import DataConfig
    from mvar.data.sources.contract import find

    config = DataConfig(name="imagefolder", root=str(folder), reading=2)
    return (find("imagefolder").open(config),)


def test_classes_against_a_checkpoint(folder, capsys, tmp_path):
    generator = ScaleTransformer(CONFIG.model, CONFIG.token_space)
    torch.save(official_state(generator), tmp_path / "ten.pth")
    code, text = check(capsys, folder, "--checkpoint", tmp_path / "ten.pth")
    assert code == 0 and "classes: " not in text
    shutil.rmtree(sorted(folder.iterdir())[0])
    code, text = check(capsys, folder, "--checkpoint", tmp_path / "ten.pth")
    assert code == 1 and f"classes: the data have 9, {tmp_path / 'ten.pth'} 10; allowed: equally many" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no/such"], "source: 'no/such' is no folder and no data source; allowed: a folder, or digits, imagefolder,"),
        (["tar"], "data.root: not set; allowed: a .tar file"),
        (["digits", "--set", "train.steps=3"], "set: train.steps is no field of the data; allowed: data.NAME=VALUE"),
        (["digits", "--record", "gone/x"], "record: gone/x: there is no folder gone"),
    ],
)
def test_mistakes_are_a_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = check(capsys, *arguments)
    assert code == 2 and text.startswith(f"mvar: error: {said}") and text.count("\n") == 1


def test_what_is_in_memory_is_decoded_anyway(capsys, tmp_path):
    code, text = check(capsys, "digits", "--results", tmp_path)
    assert code == 0 and "train: 1,797 images of 10 classes" in text and "pixels 8 x 8: 1,797" in text
    assert re.search("pixels' fingerprint: [0-9a-f]{16}\n", text)


def test_another_number_of_classes_is_no_mistake_here(folder, capsys):
    shutil.rmtree(sorted(folder.iterdir())[0])
    code, text = check(capsys, folder)
    assert code == 0 and "18 images of 9 classes" in text
