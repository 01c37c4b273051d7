import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mvar.config import DataConfig
from mvar.data.crops import resize_shorter, to_float, to_uint8
from mvar.data.splits import check_classes, load_images
from mvar.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "data_preproc"


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noise(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder_config(root: Path, **changes) -> DataConfig:
    values = {"image_size": 16, "channels": 3, "num_classes": 2, "heldout_fraction": 0.25}
    return DataConfig(name="imagefolder", root=str(root), **{**values, **changes})


@pytest.fixture
def root(tmp_path) -> Path:
    for label, name in enumerate(["b_dog", "a_cat"]):
        for i in range(8):
            write(tmp_path / "images" / name / f"{i}.png", noise(10 * label + i))
    return tmp_path / "images"


# Preparation --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 1])
def golden(request, tmp_path):
    facts = json.loads((GOLDEN / "config.json").read_text())
    inputs, outputs = load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "outputs.safetensors")
    n = request.param
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        write(tmp_path / name, inputs[f"image.{n}"].numpy())
    config = folder_config(tmp_path, image_size=facts["final_reso"], resize_factor=facts["mid_reso_factor"])
    return facts["images"][n], inputs[f"image.{n}"].numpy(), outputs[f"resized.{n}"], outputs[f"val.{n}"], config


def test_golden_resize_is_identical(golden):
    _, picture, resized, _, _ = golden
    assert np.array_equal(np.asarray(resize_shorter(Image.fromarray(picture), 45)), resized.numpy())


def test_golden_centre_crop_is_exact(golden):
    _, _, _, expected, config = golden
    prepared = load_images(config, "train").image(0, None)
    assert prepared.dtype == np.uint8 and prepared.shape == (3, 40, 40)
    assert torch.equal(to_float(prepared), expected)


def test_golden_random_crop_is_a_window_of_the_resized_image(golden):
    facts, _, resized, _, config = golden
    images = load_images(config, "train")
    windows = {}
    for seed in range(2000):
        rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
        top, left = (int(twin.integers(side - 40 + 1)) for side in facts["resized_hw"])
        windows[top, left] = images.image(0, rng)
        if tuple(facts["a_train_crop_top_left"]) in windows:
            break
    top, left = facts["a_train_crop_top_left"]
    expected = resized[top : top + 40, left : left + 40].permute(2, 0, 1).numpy()
    assert np.array_equal(windows[top, left], expected)


def test_random_crops_reach_every_corner_and_repeat_for_a_seed(root):
    images = load_images(folder_config(root), "train")  # 20x24 -> 18x21, so 3 x 6 windows
    crops = {images.image(0, np.random.default_rng(seed)).tobytes() for seed in range(400)}
    assert len(crops) == 3 * 6
    again = [images.image(0, np.random.default_rng(5)) for _ in range(2)]
    assert np.array_equal(*again)


def test_flip_comes_before_the_resize_and_only_in_training(root):
    plain = load_images(folder_config(root, resize_factor=1.0), "train")
    flipping = load_images(folder_config(root, resize_factor=1.0, hflip=True), "train")
    picture = Image.open(root / "a_cat" / "0.png")
    assert plain.class_names == ["a_cat", "b_dog"]
    index = next(i for i in range(len(plain)) if plain.pictures.name(plain.indices[i]) == "a_cat/0.png")
    mirrored = np.asarray(resize_shorter(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 16)).transpose(2, 0, 1)
    upright = np.asarray(resize_shorter(picture, 16)).transpose(2, 0, 1)

    def windows(image):
        return {image[:, :, left : left + 16].tobytes() for left in range(image.shape[2] - 15)}

    seen = [flipping.image(index, np.random.default_rng(seed)).tobytes() for seed in range(60)]
    flipped = sum(crop in windows(mirrored) for crop in seen)
    assert all(crop in windows(mirrored) | windows(upright) for crop in seen) and 15 < flipped < 45
    assert np.array_equal(flipping.image(index, None), plain.image(index, None))
    assert all(plain.image(index, np.random.default_rng(s)).tobytes() in windows(upright) for s in range(20))


def test_float_and_uint8_are_inverse():
    pixels = torch.arange(256, dtype=torch.uint8)
    values = to_float(pixels)
    assert values.dtype == torch.float32 and values[0] == -1 and values[255] == 1
    assert torch.equal(to_uint8(values), pixels)
    assert torch.equal(to_uint8(values + 0.9 / 255), pixels)  # a step is 2/255: rounds back
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    assert torch.equal(to_float(pixels.numpy()), values)


# Sets and splits ----------------------------------------------------------------------------------------------------


def test_digits_are_the_stored_pixels():
    from sklearn.datasets import load_digits

    stored = load_digits()
    train, heldout = load_images(DataConfig(), "train"), load_images(DataConfig(), "heldout")
    assert len(train) + len(heldout) == 1797 and abs(len(heldout) - 1797 / 6) <= 5
    assert train.class_names == [str(d) for d in range(10)] and train.labels.dtype == np.int64
    mine = np.stack([images.image(i, None) for images in (train, heldout) for i in range(len(images))])
    assert mine.shape == (1797, 1, 8, 8) and mine.dtype == np.uint8
    theirs = np.round(stored.images * 255 / 16).astype(np.uint8)
    labels = np.concatenate([train.labels, heldout.labels])
    order, expected = [
        sorted((p.tobytes(), int(label)) for p, label in pair)
        for pair in (zip(mine, labels, strict=True), zip(theirs, stored.target, strict=True))
    ]
    assert order == expected
    assert np.array_equal(train.image(3, None), train.image(3, np.random.default_rng(0)))
    for label in range(10):
        total = (labels == label).sum()
        assert (heldout.labels == label).sum() == round(total / 6)


def test_digits_at_another_size_and_in_colour():
    large = load_images(DataConfig(image_size=16, channels=3), "heldout")
    image = large.image(0, None)
    assert image.shape == (3, 16, 16) and np.array_equal(image[0], image[2])
    assert large.image(0, np.random.default_rng(0)).shape == (3, 16, 16)


def test_split_depends_on_its_seed_only_and_never_overlaps(root):
    def names(split, **changes):
        images = load_images(folder_config(root, **changes), split)
        return [images.pictures.name(i) for i in images.indices]

    assert names("train") == names("train") and len(names("heldout")) == 4
    assert not set(names("train")) & set(names("heldout"))
    assert names("heldout") != names("heldout", split_seed=1)
    before = set(names("train"))
    write(root / "a_cat" / "new.png", noise(99))
    assert len(before - set(names("train"))) <= 1  # another file pushes at most one over the border


def test_separate_heldout_folder(root, tmp_path):
    for name in ("a_cat", "b_dog"):
        write(tmp_path / "val" / name / "x.png", noise(7))
    config = folder_config(root, heldout_root=str(tmp_path / "val"))
    assert len(load_images(config, "train")) == 16 and len(load_images(config, "heldout")) == 2
    assert load_images(config, "heldout").labels.tolist() == [0, 1]


def test_roots_may_name_environment_variables(root, monkeypatch):
    monkeypatch.setenv("MY_IMAGES", str(root))
    assert len(load_images(folder_config(Path("$MY_IMAGES")), "train")) == 12


def test_nested_upper_case_hidden_and_foreign_files(root):
    write(root / "a_cat" / "deeper" / "y.PNG", noise(1))
    write(root / ".cache" / "z.png", noise(1))
    write(root / "a_cat" / "._0.png", noise(1))
    (root / "a_cat" / "notes.txt").write_text("no image")
    (root / "b_dog" / "readme.md").write_text("no image")
    both = [load_images(folder_config(root), split) for split in ("train", "heldout")]
    assert sum(map(len, both)) == 17 and both[0].class_names == ["a_cat", "b_dog"]


def test_grey_conversion_and_palette_images(root):
    Image.fromarray(noise(3)).quantize(8).save(root / "a_cat" / "0.png")
    grey = load_images(folder_config(root, channels=1), "train")
    assert all(grey.image(i, None).shape == (1, 16, 16) for i in range(len(grey)))


def test_fingerprint_follows_the_data(root):
    first = load_images(folder_config(root), "train")
    assert first.fingerprint == load_images(folder_config(root, image_size=8), "train").fingerprint
    assert first.fingerprint != load_images(folder_config(root), "heldout").fingerprint
    name = first.pictures.name(first.indices[0])
    with open(root / name, "ab") as file:
        file.write(b"more")
    assert load_images(folder_config(root), "train").fingerprint != first.fingerprint
    digits = [load_images(DataConfig(), split).fingerprint for split in ("train", "train", "heldout")]
    assert digits[0] == digits[1] != digits[2]


# Mistakes -----------------------------------------------------------------------------------------------------------


def message_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_empty_roots(tmp_path, root):
    gone = tmp_path / "gone"
    assert str(gone) in message_of(lambda: load_images(folder_config(gone), "train"))
    (tmp_path / "empty").mkdir()
    assert "no class subfolders" in message_of(lambda: load_images(folder_config(tmp_path / "empty"), "train"))
    (root / "c_empty").mkdir()
    assert "c_empty" in message_of(lambda: load_images(folder_config(root, num_classes=3), "train"))
    no_root = DataConfig().model_copy(update={"name": "imagefolder"})
    assert message_of(lambda: load_images(no_root, "train")).startswith("data.root: not set")


def test_wrong_number_of_classes(root, tmp_path):
    message = message_of(lambda: load_images(folder_config(root, num_classes=7), "train"))
    assert message.startswith("data.num_classes: 7 ") and "2 classes" in message
    assert "data.num_classes: 3" in message_of(lambda: load_images(DataConfig(num_classes=3), "train"))
    write(tmp_path / "single" / "only" / "0.png", noise(0))
    assert "one class only ('only')" in message_of(lambda: load_images(folder_config(tmp_path / "single"), "train"))


def test_classes_are_checked_without_listing_a_file(root, tmp_path, monkeypatch):
    """The messages are those of `load_images`."""
    for name in ("a_cat", "c_cow"):
        (tmp_path / "val" / name).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "single" / "only").mkdir(parents=True)
    wrong = [
        folder_config(root, num_classes=7),
        folder_config(tmp_path / "gone"),
        folder_config(tmp_path / "empty"),
        folder_config(tmp_path / "single"),
        folder_config(root, heldout_root=str(tmp_path / "val")),
        DataConfig(num_classes=3),
    ]
    for name in ("single/only", "val/a_cat", "val/c_cow"):
        write(tmp_path / name / "0.png", noise(0))
    expected = [message_of(lambda config=config: load_images(config, "heldout")) for config in wrong]
    monkeypatch.setattr("mvar.data.folders.os.walk", lambda *_, **__: pytest.fail("files were listed"))
    assert [message_of(lambda config=config: check_classes(config)) for config in wrong] == expected
    assert expected[0].startswith("data.num_classes: 7 ") and expected[0].endswith("allowed: 2")
    check_classes(folder_config(root))
    check_classes(DataConfig())


def test_class_too_small_to_split(root):
    for path in list((root / "b_dog").iterdir())[1:]:
        path.unlink()
    assert "class 'b_dog' has 1 image" in message_of(lambda: load_images(folder_config(root), "train"))


def test_heldout_classes_that_differ(root, tmp_path):
    for name in ("a_cat", "c_cow"):
        write(tmp_path / "val" / name / "x.png", noise(7))
    config = folder_config(root, heldout_root=str(tmp_path / "val"))
    message = message_of(lambda: load_images(config, "heldout"))
    assert "data.heldout_root" in message and "'b_dog'" in message and "'c_cow'" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not an image at all",
        lambda data: data[:20] + b"\xff" * 40 + data[60:],
    ],
)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_damaged_images_are_named(root, damage, kind):
    for path in root.rglob("*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(f".{kind}"))
        damaged = path.with_suffix(f".{kind}")
        damaged.write_bytes(damage(damaged.read_bytes()))
        if kind != "png":
            path.unlink()
    images = load_images(folder_config(root), "train")
    message = message_of(lambda: images.image(0, None))
    assert message.startswith("data.root: ") and images.pictures.name(images.indices[0]) in message


def test_sixteen_bit_images_are_refused(root):
    for path in root.rglob("*.png"):
        Image.fromarray(np.full((20, 20), 4000, dtype=np.uint16)).save(path)
    message = message_of(lambda: load_images(folder_config(root), "train").image(0, None))
    assert "more than 8 bits" in message
