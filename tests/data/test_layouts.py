"""Every layout gives the same pictures, labels and fingerprint, and one line for each mistake."""

import builtins
import shutil
from pathlib import Path

import numpy as np
import pytest
from layouts import LABELS, PIXELS, SYNSETS, WRITERS, member, png, written

from mvar.config import DataConfig
from mvar.data import encoded
from mvar.data.arrays import ArrayPictures, pixel_fingerprint
from mvar.data.sources import parquet, torchvision
from mvar.data.sources.contract import find
from mvar.data.splits import check_classes, load_images
from mvar.data.survey import survey
from mvar.errors import UserError

STORED = [layout for layout in WRITERS if layout != "imagefolder"]
EXPECTED = ArrayPictures(PIXELS, LABELS, SYNSETS).fingerprint(range(20))


def message_of(config: DataConfig) -> str:
    """The one line that says what is wrong with a data set."""
    with pytest.raises(UserError) as raised:
        check_classes(config)
        for split in ("train", "heldout"):
            images = load_images(config, split)
            for i in range(len(images)):
                images.image(i, None)
    message = str(raised.value)
    assert "\n" not in message and ("allowed" in message or "mend" in message)
    return message


def changed(config: DataConfig, **changes) -> DataConfig:
    return DataConfig.model_validate({**config.model_dump(), **changes})


@pytest.mark.parametrize("layout", WRITERS)
def test_the_same_pixels_have_one_fingerprint(layout, tmp_path):
    config = written(layout, tmp_path / "set")
    pictures = find(config.name).open(config).train
    assert np.array_equal(pictures.labels, LABELS) and len(pictures.class_names) == 10
    assert pixel_fingerprint(pictures, range(20)) == EXPECTED
    if layout != "imagefolder":  # of names and sizes: a definition of the first version, which ids of caches rest on
        assert pictures.fingerprint(range(20)) == EXPECTED
        assert pictures.fingerprint([1, 0]) != pictures.fingerprint([0, 1])
    for i in (0, 7, 19):
        assert np.array_equal(np.asarray(pictures.picture(i, "L", None)), PIXELS[i])
    assert len({pictures.name(i) for i in range(20)}) == 20


@pytest.mark.parametrize("layout", STORED)
def test_a_fingerprint_of_many_pictures_follows_labels_too(layout, tmp_path, monkeypatch):
    for module in (encoded, parquet, torchvision):
        monkeypatch.setattr(module, "DECODED", 4)
    config = written(layout, tmp_path / "set")
    pictures = find(config.name).open(config).train
    before = pictures.fingerprint(range(20))
    assert before == pictures.fingerprint(range(20)) != pictures.fingerprint(range(19))
    pictures.labels = (pictures.labels + 1) % 10
    assert pictures.fingerprint(range(20)) != before


@pytest.mark.parametrize("layout", STORED)
def test_a_split_has_both_parts(layout, tmp_path):
    config = written(layout, tmp_path / "set")
    train, heldout = (load_images(config, split) for split in ("train", "heldout"))
    if layout == "torchvision":  # its test part lies apart
        assert len(train) == len(heldout) == 20
    else:
        assert (len(train), len(heldout)) == (10, 10) and set(heldout.labels) == set(range(10))
    assert train.image(3, None).shape == (1, 28, 28) and train.reading == 2


@pytest.mark.parametrize("layout", ["npy", "tar", "parquet", "ilsvrc"])
def test_held_out_images_may_lie_apart(layout, tmp_path):
    config = written(layout, tmp_path / "set")
    shutil.copytree(tmp_path / "set", tmp_path / "other")
    apart = changed(config, heldout_root=str(tmp_path / "other"))
    check_classes(apart)
    train, heldout = (load_images(apart, split) for split in ("train", "heldout"))
    assert train.fingerprint == heldout.fingerprint == EXPECTED
    assert find(layout).takes_heldout and not find("torchvision").takes_heldout


def test_ilsvrc_trains_on_class_folders_and_measures_on_the_flat_ones(tmp_path):
    flat = written("ilsvrc", tmp_path / "val")
    WRITERS["imagefolder"](tmp_path / "train")
    config = changed(flat, root=str(tmp_path / "train"), heldout_root=str(tmp_path / "val"))
    check_classes(config)
    train, heldout = (load_images(config, split) for split in ("train", "heldout"))
    assert train.class_names == heldout.class_names == SYNSETS and np.array_equal(heldout.labels, LABELS)
    shutil.rmtree(tmp_path / "train" / SYNSETS[3])
    assert f"has pictures of {SYNSETS[3]}" in message_of(changed(config, num_classes=9))


@pytest.mark.parametrize("form", ["synset a line", "name and synset", "csv"])
def test_ilsvrc_labels_from_a_text_file(tmp_path, form):
    config = written("ilsvrc", tmp_path / "val")
    synsets = [SYNSETS[label] for label in LABELS]
    rows = [f"ILSVRC2012_val_{i + 1:08d}" for i in range(20)]
    lines = {
        "synset a line": synsets,
        "name and synset": [f"{row}.JPEG {s}" for row, s in zip(rows, synsets, strict=True)][::-1],
        "csv": [f"{row},{s} 1 2 3 4" for row, s in zip(rows, synsets, strict=True)],
    }[form]
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    config = changed(config, ilsvrc={"labels": str(tmp_path / "labels.txt")})
    assert load_images(config, "train").class_names == SYNSETS
    assert find("ilsvrc").open(config).train.fingerprint(range(20)) == EXPECTED


# Contract -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", STORED)
def test_a_survey_looks_at_every_stored_source(layout, tmp_path):
    config = written(layout, tmp_path / "set")
    found = survey(config)
    assert found.classes == 10 and found.modes == {"L": found.train + found.heldout} and not found.differs
    assert found.overlap == (20 if layout == "torchvision" else 0)
    assert str(tmp_path / "set") in found.line(config)
    again = survey(config, [found.document()])
    assert again == found
    if layout in ("tar", "parquet"):
        extra = next((tmp_path / "set").glob(f"*.{layout}"))
        shutil.copy(extra, extra.with_name(f"z.{layout}"))
        assert survey(config, [found.document()]).train > found.train


@pytest.mark.parametrize("layout", ["parquet", "torchvision", "tar", "ilsvrc"])
def test_a_survey_of_many_pictures_reads_few_of_them(layout, tmp_path, monkeypatch):
    for name, value in (("SAMPLE", 4), ("HELDOUT_SAMPLE", 2), ("SAME_SIZE", 3)):
        monkeypatch.setattr(f"mvar.data.survey.{name}", value)
    config = written(layout, tmp_path / "set")
    kind, method = type(find(config.name).open(config).train), "_stored" if layout == "torchvision" else "content"
    read, real = set(), getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda self, i: read.add(i) or real(self, i))
    monkeypatch.setattr(kind, "stored_bytes", lambda self, i, real=kind.stored_bytes: measured(real, self, i))
    asked = []

    def measured(real, self, i):
        before = len(read)
        size = real(self, i)
        asked.append((i, len(read) - before if layout != "ilsvrc" else 0))
        return size

    found = survey(config)
    assert found.looked_at == 4 and found.compared == 2
    assert len(asked) > 10 and not any(grown for _, grown in asked)  # of every picture, and none was opened for it


@pytest.mark.parametrize("layout", WRITERS)
def test_stored_sources_say_so(layout, tmp_path):
    config = written(layout, tmp_path / "set")
    source = find(config.name)
    assert not source.in_memory and source.missing(config) == []
    gone = changed(config, root=str(tmp_path / "gone"))
    assert source.missing(gone) == [f"data.root: {tmp_path / 'gone'}"]
    assert str(tmp_path / "gone") in message_of(gone)


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", STORED)
def test_another_number_of_classes(layout, tmp_path):
    config = written(layout, tmp_path / "set", num_classes=9)
    assert message_of(config).startswith("data.num_classes: 9 does not fit ") and "allowed: 10" in message_of(config)


@pytest.mark.parametrize("layout", ["npy", "tar", "parquet"])
def test_one_class(layout, tmp_path, monkeypatch):
    monkeypatch.setattr("layouts.LABELS", np.zeros(20, dtype=np.int64))
    config = written(layout, tmp_path / "set", num_classes=2)
    assert "has one class only" in message_of(config)


@pytest.mark.parametrize("layout", ["npy", "tar"])
def test_classes_without_images(layout, tmp_path, monkeypatch):
    """That are asked for beyond those that are there, or are left out between them."""
    config = written(layout, tmp_path / "set", num_classes=12)
    where = tmp_path / "set"
    assert message_of(config) == f"data.num_classes: 12 does not fit {where}, which has 10 classes; allowed: 10"
    monkeypatch.setattr("layouts.LABELS", np.where(LABELS == 8, 7, LABELS))
    config = written(layout, tmp_path / "gap")
    told = "data.root: no image of 1 class ('8'), labels are 0 to 9; allowed: one or more of each"
    assert message_of(config) == told


@pytest.mark.parametrize("layout", ["tar", "parquet", "ilsvrc"])
def test_a_broken_image_is_named(layout, tmp_path, monkeypatch):
    monkeypatch.setattr("layouts.png", lambda pixels: png(pixels)[:300])
    message = message_of(written(layout, tmp_path / "set"))
    assert message.startswith(f"data.root: {tmp_path / 'set'}/") and "is not a readable image" in message


@pytest.mark.parametrize(
    ("layout", "name", "text"),
    [
        ("npy", "labels.npy", "labels.npy is missing"),
        ("npy", "images.npy", "images.npy is missing"),
        ("tar", "*.tar", "has no .tar files"),
        ("parquet", "*.parquet", "has no .parquet files"),
        ("ilsvrc", "*.png", "has no images"),
        ("ilsvrc", "../set_devkit/data/meta.mat", "meta.mat cannot be read (No such file"),
        ("ilsvrc", "../set_devkit/data/*.txt", "ground_truth.txt cannot be read (No such file"),
        ("torchvision", "MNIST/raw/*", "torchvision cannot open MNIST below"),
    ],
)
def test_missing_files(layout, name, text, tmp_path):
    config = written(layout, tmp_path / "set")
    for path in list((tmp_path / "set").glob(name)):
        path.unlink()
    assert text in message_of(config)


def test_labels_and_pictures_are_equally_many(tmp_path):
    config = written("npy", tmp_path / "npy")
    np.save(tmp_path / "npy" / "labels.npy", LABELS[:-1])
    assert "has 20 images and 19 labels; allowed: equally many" in message_of(config)
    config = written("ilsvrc", tmp_path / "flat")
    next((tmp_path / "flat").glob("*.png")).unlink()
    assert "has 20 labels" in (message := message_of(config)) and "19 pictures; allowed: equally many" in message


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (PIXELS.astype(np.float32), "holds float32 20 x 28 x 28"),
        (np.zeros((20, 1, 28, 28), np.uint8), "holds uint8 20 x 1 x 28 x 28"),
        (np.array([object()] * 20), "cannot be read (Array can't be memory-mapped"),
    ],
)
def test_arrays_of_other_kinds(array, text, tmp_path):
    config = written("npy", tmp_path / "set")
    np.save(tmp_path / "set" / "images.npy", array)
    assert text in message_of(config)
    np.save(tmp_path / "set" / "images.npy", PIXELS)
    np.save(tmp_path / "set" / "labels.npy", LABELS - 1)
    assert "label -1 has no class; allowed: 0 to 9" in message_of(config)
    np.save(tmp_path / "set" / "labels.npy", np.array([*range(19), 1 << 60]))  # no list of so many names is made
    assert f"label {1 << 60} is too large; allowed: 0 to 1048575" in message_of(config)
    (tmp_path / "set" / "classes.txt").write_text("a\nb\na\n")
    assert "names 'a' twice" in message_of(config)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("x.png", png(PIXELS[0]), "has no x.cls beside x.png"),
        ("000001.jpg", png(PIXELS[0]), "has two pictures '000001'"),
        ("000001.cls", b"cat", "000001.cls holds no label"),
        ("000001.cls", b"1.5", "000001.cls holds no label"),
        ("000001.cls", b'{"other": 1}', "000001.cls holds no label"),
    ],
)
def test_shards_that_are_not_pairs(name, data, text, tmp_path):
    import tarfile

    config = written("tar", tmp_path / "set")
    with tarfile.open(tmp_path / "set" / "00000.tar", "a") as archive:
        member(archive, name, data)
    assert text in message_of(config)


def test_compressed_and_damaged_shards(tmp_path):
    import gzip

    config = written("tar", tmp_path / "set")
    shard = tmp_path / "set" / "00000.tar"
    whole = shard.read_bytes()
    for data in (gzip.compress(whole), b"<html>" * 400, whole[:700]):
        shard.write_bytes(data)
        assert f"{shard} is not a readable shard" in message_of(config)


def test_parquet_columns_are_settings(tmp_path):
    config = written("parquet", tmp_path / "set")
    message = message_of(changed(config, parquet={"image": "img"}))
    assert message.startswith("data.parquet.image: 'img' is no column of ") and message.endswith(
        "allowed: image, label"
    )
    assert "holds struct" in message_of(changed(config, parquet={"label": "image"}))
    (tmp_path / "set" / "train-00000-of-00002.parquet").write_bytes(b"PAR1 and no more PAR1")
    assert "train-00000-of-00002.parquet cannot be read (" in message_of(config)


@pytest.fixture
def no_pyarrow(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)


def test_a_missing_package_is_one_line(tmp_path, no_pyarrow):
    (tmp_path / "x.parquet").touch()
    config = DataConfig(name="parquet", root=str(tmp_path))
    assert message_of(config) == (
        "data.name: parquet needs pyarrow, which is not installed; allowed: after pip install pyarrow"
    )


def test_torchvision_by_name(tmp_path):
    config = written("torchvision", tmp_path / "set")
    assert "'MNITS' is unknown (did you mean 'MNIST'?)" in message_of(changed(config, torchvision={"dataset": "MNITS"}))
    message = message_of(changed(config, torchvision={"dataset": "CIFAR10"}))
    assert "torchvision cannot open CIFAR10 below" in message and "data.torchvision.download=true" in message
    assert not (tmp_path / "set" / "cifar-10-python.tar.gz").exists()  # nothing was downloaded


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "neither is set; allowed: one"),
        ({"devkit": "a", "labels": "b"}, "both are set; allowed: one"),
        ({"labels": "gone.txt"}, "gone.txt cannot be read (No such file or directory)"),
    ],
)
def test_ilsvrc_labels_come_from_one_place(settings, text, tmp_path):
    config = written("ilsvrc", tmp_path / "set")
    assert text in message_of(changed(config, ilsvrc=settings))


def test_ilsvrc_class_numbers_that_there_are_not(tmp_path):
    config = written("ilsvrc", tmp_path / "set")
    truth = Path(tmp_path, "set_devkit", "data", "ILSVRC2012_validation_ground_truth.txt")
    truth.write_text(truth.read_text().replace("3\n", "11\n", 1))
    assert "has class '11'; allowed: a number that meta.mat has, 1 to 10" in message_of(config)
    truth.with_name("meta.mat").write_bytes(b"MATLAB 5.0 MAT-file and nothing else" * 9)
    assert "meta.mat cannot be read (" in message_of(config)


def test_settings_are_part_of_ids_only_where_the_source_is_used(tmp_path):
    from mvar.config import RunConfig, override

    base = override(RunConfig(), {"data.name": "npy", "data.root": "x"})
    assert override(base, {"data.tar.label": "json"}).data_id == base.data_id
    tar = override(base, {"data.name": "tar"})
    assert override(tar, {"data.tar.label": "json"}).data_id != tar.data_id
    assert override(tar, {"data.tar.label": "cls"}).data_id == tar.data_id


@pytest.mark.parametrize(
    "code, said", [("import os; os.abort()", "damaged"), ("raise ValueError('no header')", "no head")]
)
def test_a_file_of_matlabs_that_ends_its_reader_is_one_line(tmp_path, monkeypatch, code, said):
    """scipy's reader of such files dies of some damage: it has a process of its own."""
    from mvar.data.sources import ilsvrc

    monkeypatch.setattr(ilsvrc, "READ", code)
    path = tmp_path / "meta.mat"
    path.write_bytes(b"MATLAB")
    with pytest.raises(UserError, match=rf"data.ilsvrc.devkit: .*meta.mat cannot be read \(.*{said}"):
        ilsvrc._numbered(path)
