"""Token caches of strangers: opened with true sizes and values that are numbers, or one line in bounded memory."""

import hashlib
import json
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvar.data.tokens import MAX_META_BYTES, open_token_cache
from mvar.errors import UserError
from mvar.rows import Rows

MEGABYTES = 8
TOKENS = np.arange(15, dtype="<u2").reshape(3, 5)
LABELS = np.array([0, 1, 1], dtype="<i8")


def make(folder: Path) -> dict[str, Any]:
    """A cache of 3 rows of 1 + 4 tokens; returns what its `meta.json` says."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tokens.bin": TOKENS.tobytes(), "labels.bin": LABELS.tobytes()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    meta = {
        "schema_version": 1,
        "ids": {"data": "a"},
        "shape": [3, 5],
        "dtype": "<u2",
        "vocab_size": 300,
        "patch_sides": [1, 2],
        "crops": 1,
        "seed": 0,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return meta


made = cache(make)  # for those who change what its description says, and no other file


def tried(folder: Path) -> bool:
    """Open a cache and read it all; False for a refusal, which is one short line that names the folder."""
    tracemalloc.start()
    try:
        cache = open_token_cache(folder, {"data": "a"})
        assert int(cache.tokens.astype(np.int64).sum()) >= 0 and cache.labels.shape == (len(cache.tokens),)
        assert cache.tokens.dtype.kind in "ui"
        return True
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error) and len(str(error)) < 2000
        return False
    finally:
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
        tracemalloc.stop()


def test_a_sound_cache_is_opened(tmp_path):
    make(tmp_path)
    cache = open_token_cache(tmp_path, {"data": "a"})
    assert np.array_equal(cache.tokens, TOKENS) and np.array_equal(cache.labels, LABELS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("dtype", dtype) for dtype in ("O", "|O", ">u2", "<f2", "<i8", "<u2,<u2", "V2", "U1", "<M8[s]", "|b1", 5)),
        ("dtype", None),
        ("dtype", [["a", "<u2"]]),
        ("dtype", "<i4"),  # of another size than the file
        ("dtype", "|u1"),
        *(("shape", shape) for shape in ([10**12, 5], [2**62, 5], [2**64, 5], [10**400, 5], [-3, 5], [3, -5], [0, 5])),
        *(("shape", shape) for shape in ([3], [3, 5, 1], [], "35", {"0": 3, "1": 5}, [3.0, 5], ["3", 5], [True, 5])),
        *(("shape", shape) for shape in ([5, 3], [15, 1], [2, 5], [4, 5])),
        *(("vocab_size", size) for size in (0, 1, -1, 65537, 10**30, "300", None, 300.0)),
        *(("patch_sides", sides) for sides in ([1, 3], [2, 1, 9], [], "12", [0, 1], [-1, 2], [10**9], None)),
        *(("crops", crops) for crops in (-1, "1", None, 1.5)),
        ("seed", -1),
        *(("ids", ids) for ids in ([], "a", None, {}, {"data": "b" * 100_000}, {"data": ["a"]})),
        *(("sha256", digests) for digests in ({}, [], "a", {"tokens.bin": "a"}, {"tokens.bin": 1, "labels.bin": 2})),
        *(("sha256", digests) for digests in ({"tokens.bin": "", "labels.bin": ""},)),
        *(("schema_version", version) for version in (2, "1", None, 10**30)),
    ],
)  # fmt: skip
def test_what_a_description_may_not_say(tmp_path, field, value):
    meta = make(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({**meta, field: value}))
    assert not tried(tmp_path)


@pytest.mark.parametrize("field", ["schema_version", "ids", "shape", "dtype", "vocab_size", "patch_sides", "sha256"])
def test_a_description_that_lacks_a_field(tmp_path, field):
    meta = make(tmp_path)
    del meta[field]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert not tried(tmp_path)


def test_files_that_are_none(tmp_path):
    make(tmp_path)
    for name in ("labels.bin", "tokens.bin"):
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        assert not tried(tmp_path)
    (tmp_path / "meta.json").write_bytes(b" " * (MAX_META_BYTES + 1))
    assert not tried(tmp_path)
    (tmp_path / "meta.json").write_bytes(b"[" * 100_000)
    assert not tried(tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.integers(-2, 6) | st.sampled_from([15, 2**31, 2**32, 2**62, 2**63, 10**19, 2**64])
CHANGES = st.dictionaries(
    st.sampled_from(["shape", "dtype", "vocab_size", "patch_sides", "crops", "sha256", "ids", "schema_version"]),
    VALUES | NUMBERS | st.lists(NUMBERS, min_size=1, max_size=3) | st.sampled_from(["O", "<u2", "|u1", "<i4", "f8"]),
    min_size=1,
    max_size=3,
)


def check_description(folder: Path, changes: dict[str, Any]) -> None:
    meta = made(folder)
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))
    tried(folder)


@settings(max_examples=200)
@given(CHANGES)
def test_mutated_descriptions(tmp_path_factory, changes):
    check_description(tmp_path_factory.getbasetemp() / "cache", changes)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(CHANGES)
def test_many_mutated_descriptions(tmp_path_factory, changes):
    check_description(tmp_path_factory.getbasetemp() / "cache", changes)


@settings(max_examples=200)
@given(
    st.sampled_from(["meta.json", "tokens.bin", "labels.bin"]), st.floats(0, 1), st.binary(max_size=6), st.booleans()
)
def test_changed_bytes(tmp_path_factory, name, share, new, cut):
    folder = tmp_path_factory.getbasetemp() / "bytes"
    make(folder)
    old = (folder / name).read_bytes()
    at = int(share * len(old))
    (folder / name).write_bytes(old[:at] + new + (b"" if cut else old[at + len(new) :]))
    assert tried(folder) <= (name == "meta.json" or (folder / name).read_bytes() == old)


@settings(max_examples=100)
@given(st.binary(max_size=40), VALUES | NUMBERS, VALUES, st.sampled_from(["done", "sha256", "plan", "rows_done"]))
def test_records_of_a_build_that_was_killed(tmp_path_factory, rows, number, other, field):
    """Whatever the record says, rows without their digest are made anew, and the file ends as it should."""
    folder = tmp_path_factory.getbasetemp() / "rows"
    folder.mkdir(exist_ok=True)
    partial, record = folder / "rows.partial", folder / "progress.json"
    partial.write_bytes(rows)
    values = {"plan": {"of": 1}, "done": number, "sha256": "0" * 64, field: other}
    record.write_text(json.dumps(values))
    with Rows(partial, record, {"of": 1}, 4, final=folder / "rows.bin") as found:
        kept = found.done
        assert 0 <= kept <= len(rows) // 4
        if values["sha256"] == "0" * 64:
            assert kept == 0
        found.append(b"abcd" * (12 - kept), is_last=True)
        found.finish()
        found.forget()
    assert (folder / "rows.bin").read_bytes() == rows[: 4 * kept] + b"abcd" * (12 - kept)
    (folder / "rows.bin").unlink()
