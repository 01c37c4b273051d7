"""Mutated checkpoint files: loaded, or one line; never a traceback, a hang or more memory than a small file needs."""

import io
import json
import resource
import struct
import tempfile
import time
import zipfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvar.checkpoints.checkpoint_files import read_checkpoint
from mvar.checkpoints.published import load_generator, load_tokenizer, official_state, write_official
from mvar.config import DataConfig, ModelConfig, RunConfig, TokenizerConfig, TokenSpace
from mvar.errors import UserError
from mvar.tokenizer.model import Tokenizer
from mvar.transformer import ScaleTransformer

MORE_BYTES = 2 << 30  # addresses beyond those in use; the files have 50 kB
MORE_RESIDENT = 200 << 20
SECONDS = 20


@cache
def seeds() -> dict[str, bytes]:
    """Small sound files of every format, of generator and tokenizer."""
    torch.manual_seed(0)
    sizes = ModelConfig(depth=1, width=16, num_heads=2, pattern="intra+mamba", mamba={"d_state": 4, "headdim": 16})
    state = official_state(ScaleTransformer(sizes, TokenSpace((1, 2), 8, 4, 2)))
    codebook = TokenizerConfig(width=4, vocab_size=8, code_channels=4, patch_sides=(1, 2))
    codes = Tokenizer(codebook, 1).state_dict()
    data = DataConfig(image_size=4, num_classes=2)
    config = RunConfig(model=sizes, tokenizer=codebook, data=data).model_dump(mode="json")
    files = {}
    for name, content, told in (("g", state, {"config": config}), ("t", codes, {"tokenizer": config["tokenizer"]})):
        for suffix in ("pth", "safetensors"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"a.{suffix}"
                write_official(path, content, told)
                files[f"{name}.{suffix}"] = path.read_bytes()
        legacy = io.BytesIO()
        torch.save({"trainer": {"x": content}, "epoch": 3}, legacy, _use_new_zipfile_serialization=False)
        files[f"{name}.legacy"] = legacy.getvalue()
    return files


BYTES = st.binary(min_size=1, max_size=12)
NUMBERS = st.sampled_from([0, 1, 255, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1])


@st.composite
def mutations(draw):
    """(kind of file, whether only its list of tensors is changed, changes as (share of the length, what, bytes))."""
    changes = st.tuples(
        st.floats(0, 1), st.sampled_from(["set", "insert", "delete", "cut", "repeat", "number"]), BYTES, NUMBERS
    )
    return draw(st.sampled_from(sorted(seeds()))), draw(st.booleans()), draw(st.lists(changes, min_size=1, max_size=4))


def change(content: bytes, changes) -> bytes:
    for share, what, new, number in changes:
        at = int(share * len(content))
        if what == "number":
            new = struct.pack("<Q", number)[: len(new)]
        content = {
            "set": content[:at] + new + content[at + len(new) :],
            "number": content[:at] + new + content[at + len(new) :],
            "insert": content[:at] + new + content[at:],
            "delete": content[:at] + content[at + len(new) :],
            "cut": content[:at],
            "repeat": content[:at] + content[at : at + 100] * len(new) + content[at + 100 :],
        }[what]
    return content


def changed_list(kind: str, content: bytes, changes) -> bytes:
    """Change what says which tensors there are, so that the file's own check sums do not catch it first."""
    if kind.endswith(".safetensors"):
        (length,) = struct.unpack("<Q", content[:8])
        header = change(content[8 : 8 + length], changes)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    if kind.endswith(".legacy"):
        return change(content[:3000], changes) + content[3000:]
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, change(data, changes) if name.endswith("data.pkl") else data)
    return file.getvalue()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def bounded():
    """Few addresses, little memory, little time."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, begin = resident(), time.monotonic()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)
    assert resident() - before < MORE_RESIDENT
    assert time.monotonic() - begin < SECONDS


def try_all(path: Path) -> None:
    for load in (load_generator, load_tokenizer, lambda p: read_checkpoint(p, "generator", "ema")):
        with bounded():
            try:
                load(path)
            except UserError as error:
                assert "\n" not in str(error).strip() and len(str(error)) < 20_000


def check(mutation) -> None:
    kind, only_list, changes = mutation
    content = seeds()[kind]
    content = changed_list(kind, content, changes) if only_list else change(content, changes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind.split('.')[1]}"
        path.write_bytes(content)
        try_all(path)


def test_the_sound_files_load():
    for kind, content in seeds().items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"a.{kind.split('.')[1]}"
            path.write_bytes(content)
            load = load_generator if kind.startswith("g") else load_tokenizer
            options = {"num_heads": 2, "patch_sides": (1, 2)} if kind == "g.legacy" else {}
            options = {"patch_sides": (1, 2)} if kind == "t.legacy" else options
            load(path, **options)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations())
def test_mutated_files(mutation):
    check(mutation)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations())
def test_many_mutated_files(mutation):
    check(mutation)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["g", "t"]), st.integers(0, 200), VALUES)
def test_mutated_configurations(kind, number, value):
    """Any one value of the configuration that a file tells of itself."""
    content = seeds()[f"{kind}.safetensors"]
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    told = json.loads(header["__metadata__"]["mvar"])
    places = list(places_in(told))
    parent, key = places[number % len(places)]
    parent[key] = value
    header["__metadata__"]["mvar"] = json.dumps(told)
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
        try_all(path)


def places_in(value):
    for key, inner in list(value.items()) if isinstance(value, dict) else []:
        yield value, key
        yield from places_in(inner)
