"""Data sets of strangers, a few bytes changed or cut off: pictures, or one line that names a place."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import written

from mvar.config import DataConfig
from mvar.data.sources.contract import find
from mvar.errors import UserError

LAYOUTS = ("npy", "tar", "tar_json", "parquet", "ilsvrc", "torchvision")
CHANGES = (st.floats(0, 1), st.binary(max_size=6), st.booleans(), st.integers(0, 10))


@pytest.fixture(scope="module", params=LAYOUTS)
def sound(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    config = written(request.param, folder / "set")
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return config, whole, folder


def tried(sound, share: float, new: bytes, cut: bool, which: int) -> None:
    config, whole, folder = sound
    files = [path for path in whole if path.suffix != ".png"] or list(whole)
    path = files[which % len(files)]
    old = whole[path]
    at = int(share * len(old))
    path.write_bytes(old[:at] + new + (b"" if cut else old[at + len(new) :]))
    try:
        read(config)
    except UserError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 2000 and (str(folder) in text or text.startswith("data."))
    finally:
        path.write_bytes(old)


def read(config: DataConfig) -> None:
    source = find(config.name)
    source.check(config)
    for pictures in filter(None, source.open(config)[:2]):
        assert len(pictures.labels) and pictures.labels.min() >= 0
        for i in range(len(pictures.labels)):
            assert pictures.picture(i, "RGB", 28).mode == "RGB" and pictures.header(i, 28).mode


def test_what_is_sound_is_read(sound):
    read(sound[0])


def changed(sound, count: int) -> None:
    """So many changes; fewer of a layout that a process of its own reads."""

    @settings(max_examples=max(6, count // 20) if sound[0].name == "ilsvrc" else count, deadline=None)
    @given(*CHANGES)
    def attempt(share, new, cut, which):
        tried(sound, share, new, cut, which)

    attempt()


def test_changed_bytes(sound):
    changed(sound, 30)


@pytest.mark.slow
def test_changed_bytes_for_longer(sound):
    changed(sound, 3000)


def test_a_file_that_grows_without_end_is_not_unpacked(tmp_path, monkeypatch):
    """A gigabyte of zeros in a megabyte, where Fashion-MNIST's pictures should be."""
    from mvar.data.sources import fashion

    monkeypatch.setattr(fashion, "COUNTS", {"train": 2, "t10k": 2})
    bomb = gzip.compress(bytes(1 << 24))
    for name in fashion.DIGESTS:
        (tmp_path / f"{name}.gz").write_bytes(bomb)
    with pytest.raises(UserError, match="is not Fashion-MNIST's train-images"):
        find("fashion").open(DataConfig(name="fashion", root=str(tmp_path)))
