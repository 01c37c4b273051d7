"""Which files of a folder are its pictures: links, formats, order and form of class names."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvar.config import DataConfig
from mvar.data.folders import AGAIN, BROKEN, EMPTY, HIDDEN, OTHER, SPECIAL, FolderSource, in_order
from mvar.data.splits import check_classes, load_images
from mvar.errors import UserError


def picture(path: Path, grey: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 9), grey, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("a", "b"):
        for i in range(3):
            picture(tmp_path / "data" / name / f"{i}.png", 40 * i)
    return tmp_path / "data"


def config(root: Path, **changes) -> DataConfig:
    return DataConfig(**{"name": "imagefolder", "root": str(root), "image_size": 8, "num_classes": 2, **changes})


def message_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


SOUND = [f"{name}/{i}.png" for name in "ab" for i in range(3)]


def test_both_readings_of_a_sound_folder_are_one(root):
    (root / "a" / "notes.txt").write_text("no picture")
    (root / "b" / "more").mkdir()
    os.rename(root / "b" / "2.png", root / "b" / "more" / "2.PNG")
    first, second = (FolderSource(root, "data.root", reading) for reading in (1, 2))
    assert first.files == second.files == sorted(first.files) and first.labels.tolist() == second.labels.tolist()
    assert not second.listing.differs and second.listing.skipped == {OTHER: 1} and not second.listing.links


LOOPS = {
    "itself": [("a/latest", ".")],
    "the class, from deeper": [("a/deeper/up", "../../a")],
    "the root": [("a/up", "..")],
    "above the root": [("a/far", "../..")],
    "two": [("a/one", "."), ("a/two", ".")],
    "another class": [("a/other", "../b")],
    "each other": [("a/one", "../b"), ("b/two", "../a")],
    "its own name": [("a/loop", "loop")],
    "a picture beside it": [("a/again.png", "0.png"), ("a/more.png", "again.png")],
    "a picture of another class": [("a/again.png", "../b/0.png")],
}


@pytest.mark.parametrize("links", LOOPS.values(), ids=LOOPS.keys())
def test_links_back_count_no_picture_twice(root, links):
    for name, target in links:
        (root / name).parent.mkdir(exist_ok=True)
        os.symlink(target, root / name)
    source = FolderSource(root, "data.root")
    assert source.files == SOUND and source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.listing.skipped.total() == len(links) and source.listing.links == 0


def test_two_links_and_hard_links_to_one_place_count_once(root, tmp_path):
    picture(tmp_path / "disk" / "x.png")
    picture(tmp_path / "disk" / "deeper" / "y.png")
    picture(tmp_path / "single.png")
    for name in ("one", "two"):
        os.symlink(tmp_path / "disk", root / "a" / name)
        os.symlink(tmp_path / "single.png", root / "a" / f"{name}.png")
        os.symlink(tmp_path / "disk" / "x.png", root / "a" / f"{name}_x.png")
    os.link(root / "b" / "0.png", root / "b" / "hard.png")
    source = FolderSource(root, "data.root")
    linked = {os.path.realpath(root / name) for name in source.files}
    assert len(source.files) == 6 + 3 == len(linked) and source.labels.tolist() == [0] * 6 + [1] * 3
    assert source.listing.links == 2  # a folder, a file
    assert source.listing.skipped == {AGAIN: 1 + 1 + 2 + 1}
    assert source.listing.differs == {AGAIN: 5}


def test_a_data_set_on_another_disk_is_followed(tmp_path, root):
    os.symlink(root / "a", tmp_path / "cats")
    (tmp_path / "set" / "dogs").mkdir(parents=True)
    os.symlink(tmp_path / "cats", tmp_path / "set" / "cats")
    for i in range(3):  # names without an ending, as in content-addressed stores
        blob = tmp_path / "set" / ".blobs" / f"digest{i}"
        picture(blob.with_suffix(".png"))
        os.rename(blob.with_suffix(".png"), blob)
        os.symlink(f"../.blobs/digest{i}", tmp_path / "set" / "dogs" / f"{i}.png")
    first, second = (FolderSource(tmp_path / "set", "data.root", reading) for reading in (1, 2))
    assert first.files == second.files and len(second.files) == 6
    assert second.listing.links == 4 and not second.listing.differs


def test_what_is_no_picture_is_counted_by_reason(root):
    (root / "a" / "empty.png").touch()
    (root / "a" / ".hidden.png").touch()
    (root / "a" / ".folder").mkdir()
    (root / "b" / "notes.txt").write_text("x")
    (root / "readme").write_text("x")
    os.symlink("nowhere", root / "b" / "gone.png")
    os.mkfifo(root / "b" / "pipe.png")
    source = FolderSource(root, "data.root")
    assert source.files == SOUND
    assert source.listing.skipped == {EMPTY: 1, HIDDEN: 2, OTHER: 2, BROKEN: 1, SPECIAL: 1}
    assert source.listing.differs == {EMPTY: 1, BROKEN: 1, SPECIAL: 1}
    first = FolderSource(root, "data.root", 1)
    assert len(first.files) == 6 + 3  # as ever


@pytest.mark.parametrize("name", ["x.gif", "x.GIF", "x.jfif", "x.jpe", "x.apng", "x.pnm"])
def test_more_formats_are_read_and_the_first_reading_does_not_know_them(root, name):
    kind = {"gif": "GIF", "jfif": "JPEG", "jpe": "JPEG", "apng": "PNG", "pnm": "PPM"}[name.split(".")[1].lower()]
    Image.fromarray(np.full((9, 9), 90, np.uint8)).save(root / "a" / name, format=kind)
    first, second = (FolderSource(root, "data.root", reading) for reading in (1, 2))
    assert first.files == SOUND and f"a/{name}" in second.files and second.listing.differs.total() == 1
    assert np.asarray(second.picture(second.files.index(f"a/{name}"), "L", None)).tolist() == [[90] * 9] * 9


def test_the_first_reading_is_as_it_was_and_says_so(root, capsys):
    os.symlink(".", root / "a" / "latest")
    source = FolderSource(root, "data.root", 1)
    assert len(source.files) > 6 * 3 and "a/latest/latest/0.png" in source.files
    assert "data.root" in capsys.readouterr().err


def test_many_links_back_never_hang_the_first_reading(root, monkeypatch):
    monkeypatch.setattr("mvar.data.folders.MAX_REPEATS", 1000)
    for name in ("one", "two", "three"):
        os.symlink(".", root / "a" / name)
    message = message_of(lambda: load_images(config(root), "train"))
    assert "links back to itself" in message and "data.reading=2" in message


def test_folders_that_cannot_be_listed_are_named(root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("mvar.data.folders.os.scandir", refuse)
    assert f"{root / 'b'} cannot be listed (Permission denied)" in message_of(lambda: FolderSource(root, "data.root"))


# Classes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [".", "..", "../data"])
def test_a_link_back_is_no_class(root, target):
    os.symlink(target, root / "latest")
    assert FolderSource(root, "data.root").class_names == ["a", "b"]
    check_classes(config(root, reading=2))
    with pytest.raises(UserError, match=r"data\.num_classes: 3 .* 2 classes"):
        check_classes(config(root, num_classes=3, reading=2))
    check_classes(config(root, num_classes=3))  # a stored config is read as it was


def test_two_classes_that_are_one_folder_are_refused(root):
    os.symlink("a", root / "kitten")
    assert "one folder: 'a' and 'kitten'" in message_of(lambda: FolderSource(root, "data.root"))


def test_order_of_numbers():
    assert in_order(["10", "9", "1"], "name") == ["1", "10", "9"]
    assert in_order(["10", "9", "1"], "number") == ["1", "9", "10"]
    names = ["class_2", "class_10", "class_1", "other", "02", "2", "1x"]
    assert in_order(names, "number") == ["1x", "02", "2", "class_1", "class_2", "class_10", "other"]
    assert in_order(["001.x", "002.y", "010.z"], "number") == in_order(["001.x", "002.y", "010.z"], "name")


@pytest.fixture
def numbered(tmp_path) -> Path:
    for number in range(12):
        for i in range(2):
            picture(tmp_path / "numbered" / str(number) / f"{i}.png", 20 * number)
    return tmp_path / "numbered"


def test_numeric_classes_get_their_labels_or_a_warning(numbered, capsys):
    by_text, by_number = (config(numbered, num_classes=12, class_order=order) for order in ("name", "number"))
    check_classes(by_number)
    assert not capsys.readouterr().err
    images = load_images(by_number, "train")
    assert images.class_names == [str(i) for i in range(12)]
    assert [int(images.image(i, None)[0, 0, 0]) for i in range(12)] == [20 * int(label) for label in images.labels]
    check_classes(by_text)
    err = capsys.readouterr().err
    assert err.startswith("mvar: warning: data.class_order: name gives '10' label 2 and '2' label 4; ")
    assert "data.class_order=number" in err and err.count("\n") == 1
    check_classes(by_text, order_is_asked=True)
    check_classes(by_text, stored=True)
    assert not capsys.readouterr().err
    assert load_images(by_text, "train").class_names == sorted(map(str, range(12)))


def test_the_order_of_classes_is_another_data_set_only_where_it_differs(numbered):
    from mvar.config import RunConfig, override

    base = override(RunConfig(), {"data.name": "imagefolder", "data.root": str(numbered), "data.num_classes": 12})
    assert override(base, {"data.class_order": "name", "data.reading": 1}).data_id == base.data_id
    others = [override(base, change) for change in ({"data.class_order": "number"}, {"data.reading": 2})]
    for ids in ("data_id", "run_id", "tokenizer_id", "tokens_id", "extractor_id", "floors_id", "evaluation_id"):
        assert len({getattr(other, ids) for other in (base, *others)}) == 3


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_two_forms_are_one_class_with_one_label(tmp_path, forms):
    names = ("caf\u00e9", "cafz", "bar")  # é sorts after z in one form and before it in the other
    roots = [tmp_path / form for form in forms]
    for root, form in zip(roots, forms, strict=True):
        for grey, name in enumerate(names):
            for i in range(2):
                picture(root / unicodedata.normalize(form, name) / f"{i}.png", 50 + 50 * grey)
    both = config(roots[0], heldout_root=str(roots[1]), num_classes=3)
    check_classes(both)
    train, heldout = (load_images(both, split) for split in ("train", "heldout"))
    greys = [{int(label): int(s.image(i, None)[0, 0, 0]) for i, label in enumerate(s.labels)} for s in (train, heldout)]
    assert greys[0] == greys[1] and len(greys[0]) == 3


def test_two_folders_that_are_one_name_are_refused(tmp_path):
    for form in ("NFC", "NFD"):
        picture(tmp_path / unicodedata.normalize(form, "caf\u00e9") / "0.png")
    message = message_of(lambda: FolderSource(tmp_path, "data.root"))
    assert "one name" in message and r"'caf\xe9'" in message and r"'cafe\u0301'" in message
    assert len(FolderSource(tmp_path, "data.root", 1).class_names) == 2


@pytest.mark.parametrize(("ours", "theirs", "escape"), [("ac", "\u0430c", r"\u0430"), ("a b", "a\u00a0b", r"\xa0")])
def test_names_that_only_look_the_same_are_shown_with_escapes(tmp_path, ours, theirs, escape):
    for root, name in (("train", ours), ("val", theirs)):
        for folder in (name, "z"):
            picture(tmp_path / root / folder / "0.png")
    both = config(tmp_path / "train", heldout_root=str(tmp_path / "val"))
    message = message_of(lambda: check_classes(both))
    assert "differ in 2 classes" in message and escape in message and f"'{ours}'" in message


def test_a_heldout_folder_that_is_the_training_folder_is_refused_at_launch_only(root, tmp_path, capsys):
    os.symlink(root, tmp_path / "link")
    spellings = [root, f"{root}/", root / "." / "a" / "..", tmp_path / "link"]
    for other in spellings:
        same = config(root, heldout_root=str(other))
        message = message_of(lambda same=same: check_classes(same))
        assert message.startswith(f"data.heldout_root: {Path(other)} is data.root; allowed: folders apart")
    check_classes(same, stored=True)
    assert "is data.root: images that were trained on measure the run" in capsys.readouterr().err
    assert len(load_images(same, "heldout")) == 6
    for name in ("a", "b"):
        picture(root / "b" / "val" / name / "0.png")
    inside = config(root, heldout_root=str(root / "b" / "val"))
    assert "lies in data.root" in message_of(lambda: check_classes(inside))
    around = config(root / "b" / "val", heldout_root=str(root))
    assert "holds data.root" in message_of(lambda: check_classes(around))


def test_an_unknown_source_falls_through_to_nothing(root):
    unknown = config(root).model_copy(update={"name": "imagefolders"})
    for call in (lambda: load_images(unknown, "train"), lambda: check_classes(unknown)):
        assert "data.name: 'imagefolders' is unknown (did you mean 'imagefolder'?)" in message_of(call)


def test_names_that_are_no_utf8(root):
    name = os.fsdecode(b"\xff\xe9.png")
    for folder in ("a", os.fsdecode(b"\xffz")):
        picture(root / folder / "x.png", 120)
        os.rename(root / folder / "x.png", root / folder / name)
    source = FolderSource(root, "data.root")
    assert len(source.files) == 8 and source.labels.tolist() == [0] * 4 + [1] * 3 + [2]
    assert len(source.fingerprint(range(8))) == 16
    (root / "a" / name).write_bytes(b"damaged")
    message = message_of(lambda: source.picture(source.files.index(f"a/{name}"), "RGB", None))
    message.encode()  # can be printed
    assert r"a/\xff\xe9.png is not a readable image" in message
