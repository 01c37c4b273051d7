"""Profiles mutated, cut, made by machines or by enemies: a profile or one line, in bounded time and memory."""

import os
import string
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_profiles import TOML, YAML

from mvar.cluster.profile_files import CONTROL, MAX_BYTES
from mvar.cluster.profiles import SUFFIXES, Profile, load_profile, with_settings
from mvar.errors import UserError

SECONDS, MEGABYTES = 5.0, 64


def tried(folder: Path, suffix: str, data: bytes) -> Profile | None:
    """Load bytes as a profile; None for a refusal, which is one line that says what is allowed or damaged."""
    path = folder / f"mine{suffix}"
    path.write_bytes(data)
    try:
        profile = load_profile(str(path))
    except UserError as error:
        assert "mine" in str(error) and len(str(error)) < 2000
        return None
    values = profile.model_dump()
    texts = [*profile.setup, *profile.env, *profile.env.values(), *profile.sbatch]
    texts += [v for v in (*values.values(), *profile.sbatch.values()) if isinstance(v, str)]
    assert not any(CONTROL.search(text.replace("\t", "")) for text in texts)
    return profile


@st.composite
def mutated(draw) -> tuple[str, bytes]:
    """A good profile with bytes replaced, removed, doubled or put in."""
    suffix, text = draw(st.sampled_from([(".toml", TOML), (".yaml", YAML)]))
    data = bytearray(text.encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        new = draw(
            st.binary(max_size=3) | st.sampled_from([b"\n", b": ", b" = ", b"[", b"{", b"&a ", b"*a", b"!!int "])
        )
        data[at : at + draw(st.integers(0, 4))] = new
    return suffix, bytes(data)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3))
FIELDS = st.dictionaries(st.sampled_from(["base", *Profile.model_fields]) | st.text(max_size=5), VALUES, max_size=4)


@settings(max_examples=300)
@given(mutated())
def test_mutated_profiles(tmp_path_factory, case):
    tried(tmp_path_factory.getbasetemp(), *case)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(mutated())
def test_many_mutated_profiles(tmp_path_factory, case):
    tried(tmp_path_factory.getbasetemp(), *case)


@given(st.sampled_from(SUFFIXES), st.binary(max_size=60) | st.text(string.printable, max_size=60).map(str.encode))
def test_any_bytes(tmp_path_factory, suffix, data):
    tried(tmp_path_factory.getbasetemp(), suffix, data)


@given(FIELDS)
def test_fields_of_any_type(tmp_path_factory, fields):
    import yaml

    tried(tmp_path_factory.getbasetemp(), ".yaml", yaml.dump(fields, allow_unicode=True).encode(errors="replace"))


@given(st.sampled_from(list(Profile.model_fields)) | st.text(max_size=6), st.text(max_size=20))
def test_any_setting(field, value):
    with suppress(UserError):
        with_settings(Profile(), [f"{field}={value}"])


BOMBS = {
    "laughs.yaml": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "itself.yaml": "env: &a {b: *a}\n",
    "merge.yaml": "a: &a {x: y}\nenv: {<<: *a}\n",
    "deep.yaml": "a: " + "[" * 16_000,
    "deeper.yaml": "[x,\n" * 3_000,
    "indented.yaml": "- " * 1_000 + "\n" + "? " * 1_000,
    "deep.toml": "a = " + "[" * 16_000,
    "dotted.toml": ".".join("a" * 8_000) + " = 1",
    "tables.toml": "[" + ".".join("a" * 8_000) + "]\nb = 1",
    "digits.yaml": "nodes: 0x" + "f" * 8_000,
    "digits.toml": "nodes = 0x" + "f" * 8_000,
    "decimal.yaml": "nodes: " + "9" * 8_000,
    "unknown.toml": "no_field = 0x" + "f" * 8_000,
    "long.yaml": "account: " + "a" * 8_000,
    "sexagesimal.yaml": "nodes: 1" + ":01" * 5_000,
    "large.toml": "#" * (MAX_BYTES + 1),
    "lines.yaml": "setup: [" + "a, " * 5_000,
    "types.yaml": "setup: !!python/object/apply:os.system ['true']",
    "stamp.yaml": "setup: !!timestamp x",
    "bool.yaml": "setup: !!bool x",
    "bits.yaml": "setup: !!binary ä",
    "keys.yaml": "? [a]\n: b",
    "date.toml": "nodes = 2024-99-99",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_nothing(tmp_path, name):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / name
    tracemalloc.start()
    began = time.perf_counter()
    try:
        path.write_text(BOMBS[name])
        with pytest.raises(UserError) as refused:
            load_profile(str(path))
        assert time.perf_counter() - began < SECONDS
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
    finally:
        tracemalloc.stop()
    assert str(path.parent) in str(refused.value) and len(str(refused.value)) < 2000


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.toml", "folder.yaml", "nul\0.toml", "x" * 300 + ".toml", "line\nbreak.yaml"):
        with pytest.raises(UserError, match=r"cannot be read|control character"):
            load_profile(str(tmp_path / name))


@pytest.mark.parametrize(
    ("suffix", "text", "said"),
    [
        ("toml", "account = 1234", 'account: 1234 is a number; allowed: a text, in quotes: "1234"'),
        ("yaml", "account: 0123", "account: 83 is a number"),
        ("yaml", "qos: yes", "qos: True is a boolean"),
        ("yaml", "partition: 1e3\nconstraint: 2024-01-02", 'in quotes: "2024-01-02"'),
        ("toml", "partition = 2024-01-02", 'is a date; allowed: a text, in quotes: "2024-01-02"'),
        ("toml", "env = {OMP_NUM_THREADS = 4}", 'env.OMP_NUM_THREADS: 4 is a number; allowed: a text, in quotes: "4"'),
        ("yaml", "env: {DEBUG: on}", "env.DEBUG: True is a boolean"),
        ("yaml", "env: {WHEN: 12:30}", "env.WHEN: 750 is a number"),
        ("toml", "setup = [7]", "setup.0: 7 is a number"),
        ("toml", "nodes = true", "nodes: True is a boolean"),
        ("yaml", "mem_gb: .inf", "mem_gb: inf"),
        ("toml", "mem_gb = 1e308", "mem_gb: 1e+308"),
        ("toml", 'account = "a\\nb"', r"account: 'a\nb' has the control character '\n'"),
        ("toml", 'setup = ["true\\nfalse"]', "setup.0: 'true"),
        ("toml", 'env = {A = "a\\u0000"}', r"env.A: 'a\x00' has the control character '\x00'"),
        ("toml", '[sbatch]\n"comment\\n#SBATCH --uid" = "0"', "in sbatch: has a control character"),
        ("toml", 'sbatch = {comment = "a\\rb"}', "sbatch.comment: 'a"),
        ("yaml", "1: 2", "field 1: no text"),
        ("yaml", "base: [slurm]", "unknown"),
        ("toml", 'qos = ""', "qos: '' is empty"),
        ("toml", 'sbatch = {job-nam = "a,b"}', "job-nam is set by mvar"),
        ("toml", 'sbatch = {job_name = "a,b"}', "job-name is set by mvar"),
        ("toml", 'timeout_min = "x"', "as an integer; allowed: whole number, 1 to 10,000,000"),
        ("toml", "gpus = 1", "gpus: 1: Input should be 'all' or 'planned'; allowed: all, planned"),
        ("toml", 'source = "x"', "source"),
    ],
)  # fmt: skip
def test_what_is_meant_cannot_be_known(tmp_path, suffix, text, said):
    path = tmp_path / f"mine.{suffix}"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        load_profile(str(path))
    assert said in str(refused.value) and str(path) in str(refused.value)


def test_a_file_in_latin_1_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes("account = 'Müller'".encode("latin-1"))
    with pytest.raises(UserError, match=r"mine.toml is not UTF-8 .byte 12 is 0xfc"):
        load_profile(str(path))
    path.write_bytes("\ufeffaccount = 'Müller'".encode())  # as editors of some systems begin a file
    assert load_profile(str(path)).account == "Müller"
