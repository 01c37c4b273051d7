"""Samples of strangers: what an .npz claims is held to its file before memory is taken; one line else."""

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvar.analysis.grids import read_samples
from mvar.data import npz
from mvar.errors import UserError

MEGABYTES = 8
PIXELS = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
LABELS = np.array([0, 1, 0, 1])


def header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def write(path: Path, how: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    content = {"arr_0": header(PIXELS.shape, "|u1") + PIXELS.tobytes()}
    content |= {"labels": header(LABELS.shape, "<i8") + LABELS.tobytes()} | members
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in content.items():
            archive.writestr(f"{name}.npy", data)
    return path


def whole(path: Path) -> np.ndarray:
    with npz.opened(path) as archive:
        npz.whole(archive, "labels", "<i8", (len(LABELS),))
        return npz.whole(archive, "arr_0", "uint8", PIXELS.shape)


def refused(path: Path) -> None:
    for read in (whole, read_samples):
        tracemalloc.start()
        try:
            with pytest.raises(UserError) as error:
                read(path)
            assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
        finally:
            tracemalloc.stop()
        said = str(error.value)
        assert said.startswith(f"{path}: cannot be read (") and "\n" not in said and len(said) < 1000


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sound_samples_are_read(tmp_path, how):
    path = write(tmp_path / "a.npz", how)
    assert np.array_equal(whole(path), PIXELS)
    assert np.array_equal(read_samples(path), PIXELS[[[0, 2], [1, 3]]])
    np.savez(tmp_path / "b.npz", arr_0=PIXELS, labels=LABELS)
    assert np.array_equal(whole(tmp_path / "b.npz"), PIXELS)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "members",
    [
        {"labels": header((10**12,), "<i8")},
        {"labels": header((2**61,), "<i8")},
        {"labels": header((4,), "|O") + b"\x80\x04N."},
        {"labels": header((4,), "<f8") + bytes(32)},
        {"labels": header((4,), "<i8") + bytes(31)},
        {"labels": b"\x93NUMPY\x01\x00\xff\xff"},
        {"labels": b""},
        {"labels": b"<html>"},
        {"labels": header((10**7 + 1,), "<i8") + bytes(8 * (10**7 + 1)), "arr_0": header((10**7 + 1, 1, 1, 1), "|u1")},
        {"arr_0": header((4, 10**6, 10**6, 3), "|u1")},
        {"arr_0": header((4, 2, 2), "|u1") + bytes(16)},
        {"arr_0": header((5, 2, 2, 3), "|u1") + bytes(60)},
        {"arr_0": header((4, 2, 2, 3), "<f4") + bytes(4 * 48)},
    ],
    ids=range(13),
)
def test_what_samples_may_not_claim(tmp_path, members, how):
    if how == zipfile.ZIP_STORED and len(members.get("labels", b"")) > 1 << 20:
        pytest.skip("a file of that size is no claim")
    refused(write(tmp_path / "a.npz", how, **members))


def test_sizes_in_the_directory_of_the_archive(tmp_path):
    path = write(tmp_path / "a.npz")
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # of the labels: compressed and plain size
    data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>", bytes(1000)])
def test_files_that_are_none(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    refused(path)


def check_bytes(folder: Path, how: int, share: float, new: bytes, cut: bool) -> None:
    path = write(folder / "fuzzed.npz", how)
    old = path.read_bytes()
    at = int(share * len(old))
    path.write_bytes(old[:at] + new + (b"" if cut else old[at + len(new) :]))
    try:
        assert np.array_equal(whole(path), PIXELS)  # a flipped pixel does not pass the archive's own check sum
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


CASES = (st.sampled_from([0, 8]), st.floats(0, 1), st.binary(min_size=1, max_size=6), st.booleans())


@settings(max_examples=300)
@given(*CASES)
def test_changed_bytes(tmp_path_factory, how, share, new, cut):
    check_bytes(tmp_path_factory.getbasetemp(), how, share, new, cut)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(*CASES)
def test_many_changed_bytes(tmp_path_factory, how, share, new, cut):
    check_bytes(tmp_path_factory.getbasetemp(), how, share, new, cut)
