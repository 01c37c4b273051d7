"""Documents of a results directory with any bytes or values in them: read, or one line with the path."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvar import layout
from mvar.config import RunConfig, stored_config
from mvar.errors import UserError
from mvar.runs.documents import SHAPES, UNVERSIONED, Damaged, read_document

SOUND: dict[str, dict[str, Any]] = {
    "status.json": {"state": "done", "stage": "train", "step": 1, "steps": 2, "reason": None},
    "eval.json": {"evaluations": {"a": {"metrics": {"eval/fid": 1.0}}}},
    f"{layout.SWEEPS}/mixers-smoke-steps.json": {
        "sweep": "mixers",
        "artefact": "Table 6",
        "preset": "smoke",
        "mode": "steps",
        "budget_flops": None,
        "command": "mvar run",
        "overrides": {},
        "cells": [{"label": "a", "axes": {}, "printed": {}, "run_ids": ["a"], "evaluation_ids": ["b"]}],
    },
    "submission.json": {
        "created": "2024",
        "profile": {},
        "code": "x",
        "jobs": [{"name": "a", "elements": [["a"]], "job_id": None, "cancelled": []}],
    },
    "floors.json": {"floors": {"a": {"metrics": {"floor/fid_real": 1.0}}}},
    "extractor.json": {"id": "a", "heldout_accuracy": None},
    "quality.json": {"psnr_db": 1.0, "codes_used": 1, "vocab_size": 2},
    "class_outputs.json": {"outputs": [0, 1]},
    "tokenizer.json": {"tokenizer_sha256": "a"},
    "source.json": {"sha256": "a"},
    "execution.json": {"train": [{}]},
    "start.json": {"checkpoint": "a", "sha256": "b", "loaded_layers": [], "new_layers": [0], "new_parameters": []},
    "env.json": {"versions": {"torch": "1"}},
    "timing.json": {"sample_s": 1.0},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from places_in(inner)


def check_document(folder, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        document = read_document(path)
    except Damaged as error:
        assert str(path) in str(error) and "\n" not in str(error) and ";" in str(error)
        return
    assert document.get("schema_version") == 1 or name in UNVERSIONED


def changed(name: str, number: int, value: Any) -> bytes:
    document = json.loads(json.dumps({"schema_version": 1, **SOUND[name]}))
    places = list(places_in(document))
    container, key = places[number % len(places)]
    container[key] = value
    return json.dumps(document).encode()


def test_every_kind_of_document_is_here(tmp_path):
    assert {name.partition("/")[0] for name in SOUND} >= SHAPES.keys()
    for name, document in SOUND.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"schema_version": 1, **document}))
        assert read_document(tmp_path / name) == {"schema_version": 1, **document}


CASES = (st.sampled_from(sorted(SOUND)), st.integers(0, 100), VALUES)


@settings(max_examples=300)
@given(*CASES)
def test_any_value_anywhere(tmp_path_factory, name, number, value):
    check_document(tmp_path_factory.getbasetemp(), name, changed(name, number, value))


@pytest.mark.slow
@settings(max_examples=30_000)
@given(*CASES)
def test_any_value_anywhere_for_longer(tmp_path_factory, name, number, value):
    check_document(tmp_path_factory.getbasetemp(), name, changed(name, number, value))


@settings(max_examples=300)
@given(st.sampled_from(sorted(SOUND)), st.floats(0, 1), st.binary(max_size=6), st.booleans())
def test_changed_bytes(tmp_path_factory, name, share, new, cut):
    old = json.dumps({"schema_version": 1, **SOUND[name]}).encode()
    at = int(share * len(old))
    check_document(tmp_path_factory.getbasetemp(), name, old[:at] + new + (b"" if cut else old[at + len(new) :]))


@pytest.mark.parametrize("name", sorted(SOUND))
@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\0" * 100, b"1" * 10_000])
def test_bombs(tmp_path, name, content):
    check_document(tmp_path, name, content)


# Stored configs -------------------------------------------------------------------------------------------------------


def check_config(number: int, value: Any, remove: bool) -> None:
    document = RunConfig().model_dump(mode="json")
    places = list(places_in(document))
    container, key = places[number % len(places)]
    if remove:
        del container[key]
    else:
        container[key] = value
    try:
        config, _ = stored_config(document)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 4000
        return
    assert config.run_id and config.key


@settings(max_examples=300)
@given(st.integers(0, 200), VALUES, st.booleans())
def test_any_value_of_a_stored_config(number, value, remove):
    check_config(number, value, remove)


@pytest.mark.slow
@settings(max_examples=20_000)
@given(st.integers(0, 200), VALUES, st.booleans())
def test_any_value_of_a_stored_config_for_longer(number, value, remove):
    check_config(number, value, remove)


@given(VALUES)
def test_any_value_as_a_stored_config(value):
    with pytest.raises(UserError):
        stored_config(value)


def test_a_line_break_in_a_key_stays_out_of_the_line(tmp_path):
    check_document(tmp_path, "env.json", b'{"versions": {"a\\nb": null}}')
