import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_cache import BATCH, IDS, build, make_images, make_tokenizer

from mvar import files
from mvar import rows as rows_module
from mvar.config import DataConfig
from mvar.data import tokens as tokens_module
from mvar.data.crops import to_float
from mvar.data.splits import load_images
from mvar.data.tokens import open_token_cache, token_dtype
from mvar.errors import UserError
from mvar.files import file_digest
from mvar.tokenizer import model
from mvar.tokenizer.model import Tokenizer

ROOT = Path(__file__).parents[2]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def reference(tmp_path_factory, images):
    directory = tmp_path_factory.mktemp("reference") / "cache"
    return build(directory, images), contents(directory)


class Killed(BaseException):
    pass


def kill_after(rows):
    def progress(done, total):
        if done >= rows:
            raise Killed

    return progress


def test_rows_are_the_tokens_of_the_seeded_crops(reference, images):
    cache, files = reference
    assert set(files) == {"tokens.bin", "labels.bin", "meta.json"}
    assert cache.tokens.shape == (180, 21) and cache.tokens.dtype == np.uint16 and not cache.tokens.flags.writeable
    assert np.array_equal(cache.labels, np.repeat(images.labels, 2))
    tokenizer = make_tokenizer()
    for row in (0, 1, 77, 179):
        image, crop = divmod(row, 2)
        pixels = images.image(image, np.random.default_rng([1, image, crop]))
        expected = tokenizer.encode(to_float(pixels)[None])[0]
        assert np.array_equal(cache.tokens[row].astype(np.int64), expected.numpy())
    assert len({tuple(row) for row in cache.tokens}) > 150  # crops of one image differ


def test_threads_change_nothing(reference, images, tmp_path):
    build(tmp_path, images, num_workers=3)
    assert contents(tmp_path) == reference[1]


def test_batch_size_does_not_change_the_crops(images, tmp_path, monkeypatch):
    # Pixels in place of tokens: convolutions of another batch size may round differently, crops may not.
    monkeypatch.setattr(Tokenizer, "encode", lambda _, x: ((x.flatten(1)[:, 100:121] + 1) * 127.5).round().long())
    first, second = (build(tmp_path / str(size), images, batch_size=size) for size in (7, 64))
    assert np.array_equal(first.tokens, second.tokens) and len(np.unique(first.tokens)) > 10


def test_a_round_has_few_large_images(images, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(Tokenizer, "encode", lambda _, x: sizes.append(len(x)) or x.flatten(1)[:, :21].long().abs())
    monkeypatch.setattr(model, "MOST_PIXELS", 50 * images.image(0, None)[0].size)
    assert len(build(tmp_path, images, batch_size=64).tokens) == sum(sizes) and set(sizes) == {50, sum(sizes) % 50}


def test_zero_crops_is_the_central_one(images, tmp_path):
    cache = build(tmp_path, images, crops=0)
    pixels = np.stack([images.image(i, None) for i in range(len(images))])
    assert np.array_equal(cache.tokens.astype(np.int64), make_tokenizer().encode(to_float(pixels)).numpy())
    assert np.array_equal(cache.labels, images.labels)


@pytest.mark.parametrize("vocab, dtype", [(2, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "i4")])
def test_dtype_follows_the_codebook(vocab, dtype):
    assert token_dtype(vocab) == np.dtype(dtype)
    assert np.iinfo(token_dtype(vocab)).max >= vocab - 1


def test_progress_runs_from_zero_to_all(images, tmp_path):
    seen = []
    build(tmp_path, images, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 180) and seen[-1] == (180, 180) and seen == sorted(seen)


@pytest.mark.parametrize("rows", range(0, 181, 3 * BATCH))
@pytest.mark.parametrize("every_s", [0.0, 1e9])
def test_interrupted_build_goes_on_and_ends_the_same(reference, images, tmp_path, monkeypatch, rows, every_s):
    _, files = reference
    monkeypatch.setattr(rows_module, "RECORD_EVERY_S", every_s)
    with pytest.raises(Killed):
        build(tmp_path, images, progress=kill_after(rows))
    with pytest.raises(UserError, match="no finished cache"):
        open_token_cache(tmp_path, IDS)
    seen = []
    build(tmp_path, images, progress=lambda done, total: seen.append(done))
    assert seen[0] == (-(-rows // BATCH) * BATCH if every_s == 0 else 0)
    assert contents(tmp_path) == files


def test_killed_between_the_last_steps(reference, images, tmp_path, monkeypatch):
    _, files = reference
    for name in ("write_json", "known_digest"):
        with monkeypatch.context() as patch:
            original = getattr(tokens_module, name)

            def fail(path, *rest, original=original, name=name):
                if name == "known_digest" or Path(path).name == "meta.json":
                    raise Killed
                return original(path, *rest)

            patch.setattr(tokens_module, name, fail)
            with pytest.raises(Killed):
                build(tmp_path / name, images)
        seen = []
        build(tmp_path / name, images, progress=lambda done, total, seen=seen: seen.append(done))
        assert seen == [180] and contents(tmp_path / name) == files


def test_kill_9_in_the_middle(reference, images, tmp_path):
    _, files = reference
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_tokens
test_tokens.rows_module.RECORD_EVERY_S = 0.0
def progress(done, total):
    if done >= 100: os.kill(os.getpid(), signal.SIGKILL)
test_tokens.build({str(tmp_path)!r}, progress=progress)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "progress.json").read_text())["done"] == 112
    with open(tmp_path / "tokens.bin.partial", "ab") as file:
        file.write(b"half a row that no record covers")
    build(tmp_path, images)
    assert contents(tmp_path) == files


def test_full_disk_is_an_oserror_and_leaves_the_rest_usable(reference, images, tmp_path, monkeypatch):
    _, files = reference
    monkeypatch.setattr(rows_module, "RECORD_EVERY_S", 0.0)
    written, original = [], rows_module.Rows._write

    def write(rows, data):
        if len(written) == 5:
            original(rows, data[: len(data) // 3])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(original(rows, data))

    with monkeypatch.context() as patch:
        patch.setattr(rows_module.Rows, "_write", write)
        with pytest.raises(OSError) as caught:
            build(tmp_path, images)
        assert caught.value.errno == errno.ENOSPC
    seen = []
    build(tmp_path, images, progress=lambda done, total: seen.append(done))
    assert seen[0] == 5 * BATCH and contents(tmp_path) == files


@pytest.mark.parametrize("change", ["ids", "seed", "data", "short", "garbage"])
def test_partial_of_something_else_is_not_continued(reference, images, tmp_path, monkeypatch, change):
    _, files = reference
    monkeypatch.setattr(rows_module, "RECORD_EVERY_S", 0.0)
    other = {"ids": {"ids": {**IDS, "tokenizer_id": "zzzz"}}, "seed": {"seed": 5}}.get(change, {})
    source = load_images(DataConfig(image_size=16, heldout_fraction=0.05, split_seed=3), "heldout")
    with pytest.raises(Killed):
        build(tmp_path, source if change == "data" else images, progress=kill_after(64), **other)
    if change == "short":
        os.truncate(tmp_path / "tokens.bin.partial", 1000)
    if change == "garbage":
        (tmp_path / "progress.json").write_text('{"rows_done": ')
    seen = []
    build(tmp_path, images, progress=lambda done, total: seen.append(done))
    assert seen[0] == 0 and contents(tmp_path) == files


def test_a_finished_cache_is_opened_not_built(reference, images, monkeypatch):
    cache, files = reference
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("encoded again"))
    assert np.array_equal(build(cache.directory, images).tokens, cache.tokens)
    assert contents(cache.directory) == files
    with pytest.raises(UserError, match=r"seed 1, needed is 2"):
        build(cache.directory, images, seed=2)
    with pytest.raises(UserError, match=r"shape \[180, 21\], needed is \[270, 21\]"):
        build(cache.directory, images, crops=3)
    assert contents(cache.directory) == files


# Mistakes and damage ------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(reference, tmp_path):
    for name, data in reference[1].items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def message_of(directory, ids=IDS, **options) -> str:
    with pytest.raises(UserError) as caught:
        open_token_cache(directory, ids, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cache_of_another_tokenizer_names_both(copy):
    message = message_of(copy, {**IDS, "tokenizer_id": "cccc"})
    assert "'aaaa'" in message and "'cccc'" in message and str(copy) in message
    assert "None" in message_of(copy, {"crop_style": 3})
    assert open_token_cache(copy, {"data": "bbbb"}).tokens.shape == (180, 21)


@pytest.mark.parametrize("name", ["tokens.bin", "labels.bin"])
def test_truncated_missing_and_corrupt_files_are_named(copy, name):
    path = copy / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert str(path) in (message := message_of(copy)) and "truncated" in message
    assert "truncated" in message_of(copy, verify=False)
    path.write_bytes(data + b"x")
    assert "too long" in message_of(copy)
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert str(path) in (message := message_of(copy)) and "corrupt" in message
    open_token_cache(copy, IDS, verify=False)
    path.unlink()
    assert str(path) in (message := message_of(copy)) and "missing" in message


def test_large_files_are_read_through_once_for_each_state(copy, monkeypatch):
    monkeypatch.setattr(files, "STAMPED_FROM_BYTES", 100)
    read = []
    monkeypatch.setattr(files, "file_digest", lambda path: read.append(path.name) or file_digest(path))
    for _ in range(2):
        open_token_cache(copy, IDS)
        assert read == ["tokens.bin", "labels.bin"]
    path = copy / "tokens.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for _ in range(2):
        assert "corrupt" in message_of(copy)
    path.write_bytes(data)
    assert open_token_cache(copy, IDS).tokens.shape == (180, 21)


def test_a_large_build_knows_its_digests(images, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "STAMPED_FROM_BYTES", 100)
    build(tmp_path, images)
    monkeypatch.setattr(files, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    open_token_cache(tmp_path, IDS)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1, "ids": [], "shape": [1, 2]}', "3"])
def test_damaged_description_is_named(copy, text):
    (copy / "meta.json").write_text(text)
    assert str(copy / "meta.json") in message_of(copy)


def test_description_of_a_later_version_is_refused(copy):
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps({**meta, "schema_version": 2}))
    assert "schema 2; allowed: 1" in message_of(copy)


def test_unreadable_image_in_the_middle_is_named_and_can_be_mended(tmp_path):
    folder = tmp_path / "images"
    for label in "ab":
        for i in range(6):
            (folder / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    config = DataConfig(
        name="imagefolder", root=str(folder), heldout_root=str(folder), image_size=16, channels=1, num_classes=2
    )
    data = (folder / "b" / "3.png").read_bytes()
    (folder / "b" / "3.png").write_bytes(data[:-40])
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"b/3\.png is not a readable image"):
            build(tmp_path / "cache", load_images(config, "train"), batch_size=4, num_workers=workers)
    (folder / "b" / "3.png").write_bytes(data)
    assert build(tmp_path / "cache", load_images(config, "train"), batch_size=4).tokens.shape == (24, 21)
