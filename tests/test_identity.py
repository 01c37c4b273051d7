"""Ids survive growth: golden ids of every preset and sweep, pinned defaults, fields that are added later."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mvar import config as schema
from mvar.config import RunConfig, from_dict, identity, override, stored_config
from mvar.errors import UserError
from mvar.presets import PRESETS
from mvar.registries import MIXERS
from mvar.runs.experiment import experiment_names, find_experiment

GOLDEN = Path(__file__).parent / "golden/identity.json"
KINDS = ("run_id", "tokenizer_id", "tokens_id", "extractor_id", "floors_id", "evaluation_id", "data_id")
SECTIONS = {
    "": schema.RunConfig,
    "data": schema.DataConfig,
    "tokenizer": schema.TokenizerConfig,
    "tokenizer.train": schema.OptimConfig,
    "model": schema.ModelConfig,
    "model.mamba": schema.MambaConfig,
    "train": schema.TrainConfig,
    "sample": schema.SampleConfig,
    "evaluation": schema.EvaluationConfig,
    "runtime": schema.RuntimeConfig,
}


def all_ids() -> dict[str, dict[str, list[str]]]:
    """Ids of every cell of every sweep on every preset; the reason where a sweep does not fit a preset.

    Of presets on fresh crops, which differ in one field, one sweep.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for preset, config in PRESETS.items():
        names = ["mixers"] if config.train.tokens == "online" else experiment_names()
        for name, sweep in ((name, find_experiment(name)) for name in names):
            try:
                cells = sweep.cells(config)
            except UserError as error:
                found[f"{preset}/{name}"] = {"refused": [str(error)]}
                continue
            found[f"{preset}/{name}"] = {c.label: [getattr(c.config, kind) for kind in KINDS] for c in cells}
    return found


def pins() -> dict[str, object]:
    """Every field of every section with the default that an id leaves out, and its section's version."""
    found: dict[str, object] = {}
    for where, kind in SECTIONS.items():
        for field, info in kind.model_fields.items():
            if identity.subsection(kind, field) is None:
                default = info.get_default(call_default_factory=True)
                found[f"{where}.{field}".removeprefix(".")] = [identity.pinned(kind, field), json_of(default)]
    for name in MIXERS.paths:  # settings in a pattern's text, which leaves defaults out
        kind = MIXERS.settings(name)
        for field, info in kind.model_fields.items() if kind and f"model.{name}" not in SECTIONS else ():
            found[f"model.{name}.{field}"] = 2 * [info.get_default(call_default_factory=True)]
    return found


def json_of(value: object) -> object:
    return json.loads(json.dumps(value))


def test_every_id_is_the_golden_one():
    """A changed id would make every finished run 'to do'. Where a new preset or sweep is added: write it anew, look at
    the difference, which must be additions alone."""
    golden = json.loads(GOLDEN.read_text())["ids"]
    now = json_of(all_ids())
    assert {name: now.get(name) for name in golden} == golden
    assert now.keys() == golden.keys(), "new presets or sweeps: python tests/test_identity.py writes them"


def test_a_changed_default_needs_a_new_version_of_its_section():
    golden = json.loads(GOLDEN.read_text())["pinned"]
    now = json_of(pins())
    for name, (pin, default) in golden.items():
        where, _, _ = name.rpartition(".")
        section = SECTIONS.get(where)  # none: a mixer's, whose defaults never change
        version = section and "version" in section.model_fields and identity.pinned(section, "version")
        assert now[name][0] == pin, f"{name}: its pinned default moved, which moves ids; keep it in identity.REPINNED"
        assert now[name][1] == default or version, (
            f"{name}: its default changed from {default} to {now[name][1]}; give its section a field `version` "
            "(pinned at 1), keep the old default in identity.REPINNED, then: python tests/test_identity.py"
        )
    assert now.keys() == golden.keys(), "new fields: python tests/test_identity.py pins them"


def test_the_first_version_is_frozen():
    """Fields that were added later are never hashed in full."""
    assert {name: len(fields) for name, fields in identity.FIRST.items()} == {
        "RunConfig": 9,
        "DataConfig": 10,
        "OptimConfig": 14,
        "TokenizerConfig": 15,
        "MambaConfig": 4,
        "ModelConfig": 13,
        "TrainConfig": 17,
        "SampleConfig": 5,
        "EvaluationConfig": 7,
        "RuntimeConfig": 10,
    }


@contextmanager
def added(kind: type[BaseModel], name: str, annotation: type, default: object):
    """A section with one more field, in this process, and every section that holds it."""
    holders = [k for k in (*SECTIONS.values(),) if k is kind or _holds(k, kind)]
    kind.model_fields[name] = FieldInfo(annotation=annotation, default=default)
    kind.__annotations__[name] = annotation
    rebuild(holders)
    try:
        yield
    finally:
        del kind.model_fields[name], kind.__annotations__[name]
        rebuild(holders)


def _holds(kind: type[BaseModel], inner: type[BaseModel]) -> bool:
    found = [identity.subsection(kind, field) for field in kind.model_fields]
    return any(part and (part is inner or _holds(part, inner)) for part in found)


def rebuild(kinds: list[type[BaseModel]]) -> None:
    for kind in sorted(kinds, key=lambda k: sum(_holds(k, other) for other in kinds)):
        kind.model_rebuild(force=True)


@pytest.mark.parametrize("where", SECTIONS)
def test_a_field_that_is_added_moves_no_id_until_it_is_used(where):
    kind = SECTIONS[where]
    base = PRESETS["smoke"]
    before = {kind_: getattr(base, kind_) for kind_ in KINDS}
    document = identity.as_document(base)
    with added(kind, "later", int, 3):
        config, unknown = stored_config(document)
        assert not unknown and {k: getattr(config, k) for k in KINDS} == before and config.key == base.key
        assert identity.as_document(config) == document  # and no file's bytes change
        used = override(config, {f"{where}.later".removeprefix("."): 4})
        assert "later" in json.dumps(identity.as_document(used))
        changed = {k for k in KINDS if getattr(used, k) != before[k]}
        assert changed == CHANGED[where]
        assert from_dict(RunConfig, used.model_dump(mode="json")) == used
    newer = identity.as_document(base) | {}
    assert stored_config(newer).config == base


CHANGED = {
    "": {"run_id"},
    "data": {"run_id", "tokenizer_id", "tokens_id", "extractor_id", "floors_id", "evaluation_id", "data_id"},
    "tokenizer": {"run_id", "tokenizer_id", "tokens_id", "floors_id"},
    "tokenizer.train": {"run_id", "tokenizer_id", "tokens_id", "floors_id"},
    "model": {"run_id"},
    "model.mamba": {"run_id"},
    "train": {"run_id"},
    "sample": {"evaluation_id"},
    "evaluation": {"evaluation_id", "floors_id"},
    "runtime": set(),
}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data.root": "/d"}, {"data.root": "/x/../d"}),
        ({"data.root": "/d"}, {"data.root": "/d/"}),
        ({"data.root": "/d"}, {"data.root": "//d/./"}),
        ({"data.root": "/d"}, {"data.root": "///../d"}),
        ({"data.root": "$A/b/../d"}, {"data.root": "$A/d"}),
        ({"data.root": "$HERE/d"}, {"data.root": "$HERE//d/"}),
        ({"train.accumulate": 2}, {"runtime.accumulate": 4}),
        ({"model.pattern": "global"}, {"model.pattern": "4*global", "model.mamba.d_state": 8}),
        ({"train.steps": 20}, {"train.steps": "20.0"}),
        ({"model.pattern": "intra", "runtime.device": "cpu"}, {"model.pattern": "1*intra 3*intra"}),
    ],
)
def test_spellings_of_one_run_have_one_key(one, other):
    base = {"data.name": "imagefolder", "data.root": "/d"}
    first, second = (override(PRESETS["smoke"], {**base, **values}) for values in (one, other))
    assert first.key == second.key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data.root": "/d"}, {"data.root": "/e"}),
        ({"data.root": "$HERE/d"}, {"data.root": "$THERE/d"}),
        ({"data.root": "$HERE/../d"}, {"data.root": "d"}),  # what lies above a variable's folder is not known
        ({"data.root": "$HERE/../d"}, {"data.root": "$THERE/../d"}),
        ({"data.root": "~/../d"}, {"data.root": "d"}),
        ({"data.root": "../d"}, {"data.root": "d"}),
        ({"model.pattern": "mamba"}, {"model.pattern": "mamba", "model.mamba.d_state": 8}),
        ({"train.precision": "bf16"}, {"train.precision": "fp32"}),
        ({"seed": 1}, {"seed": 2}),
    ],
)
def test_other_runs_have_other_keys(one, other):
    base = {"data.name": "imagefolder", "data.root": "/d"}
    first, second = (override(PRESETS["smoke"], {**base, **values}) for values in (one, other))
    assert first.key != second.key


def test_a_moved_field_is_refused_where_nobody_would_heed_it():
    with pytest.raises(ValueError, match=r"accumulate: 2 has moved; allowed: runtime.accumulate=2"):
        schema.TrainConfig(accumulate=2)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"pinned": pins(), "ids": all_ids()}, indent=1) + "\n")
