"""Fashion-MNIST from wherever its files lie; and the border that gives pictures another size without resizing them."""

import gzip
import hashlib

import numpy as np
import pytest
from PIL import Image

from mvar.config import DataConfig, RunConfig, override
from mvar.data.arrays import ArrayPictures, pixel_fingerprint
from mvar.data.sources import fashion
from mvar.data.sources.contract import find
from mvar.data.splits import check_classes, load_images
from mvar.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = (np.arange(30) % 10).astype(np.uint8)


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """Four files like the real ones, of 20 training and 10 held-out pictures, whose digests are the known ones."""
    monkeypatch.delenv(fashion.VARIABLE, raising=False)
    monkeypatch.setattr(fashion, "COUNTS", {"train": 20, "t10k": 10})
    parts = {"train": slice(20), "t10k": slice(20, 30)}
    found = {}
    for prefix, part in parts.items():
        found[f"{prefix}-images-idx3-ubyte"] = idx(PIXELS[part])
        found[f"{prefix}-labels-idx1-ubyte"] = idx(LABELS[part])
    monkeypatch.setattr(fashion, "DIGESTS", {name: hashlib.sha256(data).hexdigest() for name, data in found.items()})
    return found


def write(folder, files, compressed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return folder


def config(root=None, **changes) -> DataConfig:
    return DataConfig(**{"name": "fashion", "root": root and str(root), "image_size": 32, "pad_px": 2, **changes})


@pytest.mark.parametrize("place", ["root", "torchvision", "debian", "variable"])
def test_wherever_the_files_lie_they_are_the_same_images(files, place, tmp_path, monkeypatch):
    root = tmp_path / "data"
    write(root / "FashionMNIST" / "raw" if place == "torchvision" else root, files, compressed=place == "debian")
    if place == "debian":
        monkeypatch.setattr(fashion, "DEBIAN", root)
    if place == "variable":
        monkeypatch.setenv(fashion.VARIABLE, str(root))
    data = config(root if place in ("root", "torchvision") else None)
    check_classes(data)
    train, heldout = (load_images(data, split) for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (20, 10) and train.class_names[9] == "ankle boot"
    assert np.array_equal(train.labels, LABELS[:20]) and np.array_equal(heldout.labels, LABELS[20:])
    assert train.fingerprint == ArrayPictures(PIXELS[:20], LABELS[:20], fashion.CLASSES).fingerprint(range(20))
    assert np.array_equal(heldout.image(3, None)[0], np.pad(PIXELS[23], 2))


def test_the_known_digests_are_of_files_of_the_known_sizes():
    assert list(fashion.DIGESTS) == [
        f"{part}-{kind}-ubyte" for part in fashion.COUNTS for kind in ("images-idx3", "labels-idx1")
    ]
    assert all(len(digest) == 64 for digest in fashion.DIGESTS.values()) and len(set(fashion.DIGESTS.values())) == 4


@pytest.mark.parametrize("damage", ["other pixels", "short", "no gzip", "gzip cut", "labels missing", "one of another"])
def test_other_files_are_refused_in_a_line(files, damage, tmp_path):
    folder = write(tmp_path, files)
    name = "train-images-idx3-ubyte"
    data = files[name]
    path = folder / f"{name}.gz"
    if damage == "other pixels":
        path.write_bytes(gzip.compress(data[:-1] + bytes([data[-1] ^ 1])))
    elif damage == "short":
        path.write_bytes(gzip.compress(data[:-1]))
    elif damage == "no gzip":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    elif damage == "gzip cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "labels missing":
        (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    else:
        path.write_bytes(gzip.compress(files["t10k-images-idx3-ubyte"]))
    with pytest.raises(UserError) as raised:
        check_classes(config(tmp_path))
        load_images(config(tmp_path), "train")
    message = str(raised.value)
    assert message.startswith(f"data.root: {tmp_path}") and "dataset-fashion-mnist" in message and "\n" not in message
    assert ("t10k-labels" if damage == "labels missing" else name) in message


def test_where_there_is_nothing_the_line_says_what_to_install(files, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "gone")
    said = f"data.root: not set, and {tmp_path / 'gone'} does not hold Fashion-MNIST; allowed: .*dataset-fashion-mnist"
    with pytest.raises(UserError, match=said):
        check_classes(config())
    with pytest.raises(UserError, match=rf"^data.root: {tmp_path / 'x'} does not hold Fashion-MNIST"):
        check_classes(config(tmp_path / "x"))
    with pytest.raises(UserError, match=r"data.num_classes: 9 does not fit Fashion-MNIST, which has 10 classes"):
        check_classes(config(tmp_path, num_classes=9))


def test_a_border_gives_the_image_its_size_and_leaves_the_pixels(files, tmp_path):
    """No random crop, no filter: training and held-out preparation are one, whatever resize_factor says."""
    write(tmp_path, files)
    images = load_images(config(tmp_path), "train")
    for rng in (None, np.random.default_rng(1)):
        image = images.image(0, rng)
        assert image.shape == (1, 32, 32) and np.array_equal(image[0], np.pad(PIXELS[0], 2))
    colour = load_images(config(tmp_path, channels=3), "train").image(0, None)
    assert np.array_equal(colour, np.repeat(np.pad(PIXELS[0], 2)[None], 3, 0))
    bare = load_images(config(tmp_path, image_size=28, pad_px=0), "train").image(0, None)
    assert np.array_equal(bare[0], PIXELS[0])
    larger = load_images(config(tmp_path, image_size=48), "train").image(0, None)
    assert larger.shape == (1, 48, 48)  # resized to 54, of which the border is 3


def test_a_border_is_part_of_ids_only_where_there_is_one():
    assert "pad_px" not in RunConfig().identity()["data"]
    assert override(RunConfig(), {"data.pad_px": 2}).data_id != RunConfig().data_id
    with pytest.raises(UserError, match=r"data.pad_px"):
        override(RunConfig(), {"data.pad_px": -1})


def test_the_fingerprint_is_of_pixels_and_labels(files):
    grey = ArrayPictures(PIXELS, LABELS, fashion.CLASSES)
    coloured = ArrayPictures(np.repeat(PIXELS[..., None], 3, -1), LABELS, ["other", *fashion.CLASSES[1:]])
    order = [4, 2, 9]
    assert grey.fingerprint(order) == coloured.fingerprint(order) == pixel_fingerprint(grey, order)
    changed = PIXELS.copy()
    changed[2, 5, 5] ^= 1
    relabelled = LABELS.copy()
    relabelled[9] = 0
    others = [
        grey.fingerprint([2, 4, 9]),
        ArrayPictures(changed, LABELS, fashion.CLASSES).fingerprint(order),
        ArrayPictures(PIXELS, relabelled, fashion.CLASSES).fingerprint(order),
        ArrayPictures(PIXELS.reshape(30, 14, 56), LABELS, fashion.CLASSES).fingerprint(order),
    ]
    assert len({grey.fingerprint(order), *others}) == 5


def test_it_is_in_memory():
    source = find("fashion")
    assert source.in_memory and not source.takes_heldout and source.reading(config()) == 2
    assert isinstance(ArrayPictures(PIXELS, LABELS, fashion.CLASSES).picture(0, "RGB", None), Image.Image)
