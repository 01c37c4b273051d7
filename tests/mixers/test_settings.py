"""Settings of mixers: in a pattern's text and in a section, one model for all spellings, in ids only where used."""

import json
from typing import Literal

import pytest
from pydantic import Field, model_validator

from mvar.config import Config, ModelConfig, RunConfig, from_dict, identity, override, stored_config
from mvar.config.mixer_settings import read_settings, write_settings
from mvar.errors import UserError
from mvar.registries import MIXERS
from mvar.runs.grid import Grid, read_grid

BASE = override(RunConfig(), {"model.mamba.d_state": 16, "model.mamba.headdim": 32})


class Windowed:
    """A mixer as far as a config knows it."""

    class Settings(Config):
        k: int = Field(default=3, ge=1, description="Side.")
        scale: float | None = None
        side: Literal[1, 2] = 1
        order: Literal["rows", "snake"] = "rows"
        both: bool = False
        sizes: tuple[int, ...] = ()

        @model_validator(mode="after")
        def _check(self):
            if self.k > 5 and self.side == 1:
                raise ValueError(f"k: {self.k} needs side 2; allowed: up to 5")
            return self


@pytest.fixture(autouse=True)
def own(monkeypatch):
    monkeypatch.setattr(MIXERS, "own", {"windowed": Windowed})


def model(**values):
    return override(BASE, {f"model.{name}": value for name, value in values.items()}).model


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("w", "w"),
        ("w:3", "w"),
        ("w:k=3,side=1", "w"),
        ("w:2", "w:2"),
        ("w:k=2", "w:2"),
        ("w:side=2,k=6", "w:6,side=2"),
        ("w:scale=1e-3", "w:scale=0.001"),
        ("w:scale=1e20", "w:scale=1e20"),
        ("w:scale=none", "w"),
        ("w:order=snake,both=true", "w:order=snake,both=true"),
        ("w:both=yes,scale=0.50", "w:scale=0.5,both=true"),
    ],
)
def test_one_text_for_one_mixer(text, normal):
    base = Windowed.Settings()
    settings = read_settings(text, Windowed.Settings, base)
    assert write_settings("w", settings, base) == normal
    assert read_settings(normal, Windowed.Settings, base) == settings


def test_the_text_changes_the_section_and_the_section_the_defaults():
    found = model(pattern="4*windowed 4*intra+windowed:order=snake", **{"windowed.k": 4})
    assert found.settings_of("windowed") == Windowed.Settings(k=4)
    assert found.settings_of("windowed:order=snake") == Windowed.Settings(k=4, order="snake")
    assert model(pattern="windowed").settings_of("windowed") == Windowed.Settings()
    assert found.settings_of("mamba").d_state == 16 and found.settings_of("mamba:8").headdim == 32
    assert found.settings_of("global") is None


def test_what_the_section_says_already_is_left_out():
    assert model(pattern="4*windowed:4 4*windowed", **{"windowed.k": 4}).pattern == "windowed"
    assert model(pattern="4*windowed:3 4*windowed", **{"windowed.k": 4}).pattern == "4*windowed:3 4*windowed"
    assert model(pattern="mamba:16").pattern == "mamba" and model(pattern="mamba:64").pattern == "mamba:64"
    assert model(replacement="windowed:3", replace="first:2").pattern == "2*windowed 6*global"


def test_a_replacement_that_replaces_nothing_is_refused():
    """Alone it says nothing of which layers; with a rule that says none of them it is one cell of many."""
    with pytest.raises(
        UserError, match=r"model\.replacement: given without model\.replace, it replaces nothing; allowed"
    ):
        model(replacement="intra")
    assert model(replacement="intra", replace="none").pattern == "global"
    axes = read_grid(["model.replacement=intra,mamba", "model.replace=first:2"], BASE)
    cells = Grid("x", axes).experiment().cells(BASE)
    assert [cell.config.model.pattern for cell in cells] == ["2*intra 6*global", "2*mamba 6*global"]


SAME = [
    ({"pattern": "windowed", "windowed.k": 4}, {"pattern": "8*windowed:4"}),
    ({"pattern": "4*windowed:3 4*windowed", "windowed.k": 4}, {"pattern": "4*windowed 4*windowed:4"}),
    ({"pattern": "windowed:3", "windowed.k": 4}, {"pattern": "windowed"}),
    ({"pattern": "intra+mamba:8"}, {"pattern": "intra+mamba", "mamba.d_state": 8}),
    ({"pattern": "intra+mamba:scan_order=raster"}, {"pattern": "intra+mamba"}),
    ({"pattern": "mamba:scan_order=snake"}, {"pattern": "mamba", "mamba.scan_order": "snake"}),
    ({"pattern": "4*mamba:8 4*mamba"}, {"pattern": "4*mamba 4*mamba:16", "mamba.d_state": 8}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_model_are_one_run(one, other):
    a, b = (override(BASE, {f"model.{name}": value for name, value in values.items()}) for values in (one, other))
    assert a.run_id == b.run_id and a.key == b.key
    assert identity.as_document(a) == identity.as_document(b)
    again = stored_config(json.loads(json.dumps(identity.as_document(a)))).config
    assert again.run_id == a.run_id and identity.as_document(again) == identity.as_document(a)
    for text in ("windowed", "mamba"):
        for layer, wanted in zip(again.model.layers, a.model.layers, strict=True):
            mine = [again.model.settings_of(t) for t in layer.split("+") if t.startswith(text)]
            assert mine == [a.model.settings_of(t) for t in wanted.split("+") if t.startswith(text)]


def test_other_settings_are_other_runs():
    patterns = ["windowed", "windowed:4", "windowed:order=snake", "mamba", "mamba:8", "4*mamba 4*mamba:8"]
    configs = [override(BASE, {"model.pattern": pattern}) for pattern in patterns]
    assert len({config.run_id for config in configs}) == len({config.key for config in configs}) == len(patterns)
    assert configs[1].run_id.startswith("digits-d8-w64-windowed_4-s0-")


def test_settings_of_a_mixer_that_no_layer_holds_are_in_no_id():
    """Else a sweep's baselines would be trained anew for every value of its mixer."""
    for pattern in ("global", "intra+mamba"):
        plain = override(BASE, {"model.pattern": pattern})
        beside = override(plain, {"model.windowed.k": 5})
        assert (beside.run_id, beside.key) == (plain.run_id, plain.key)
        assert identity.as_document(beside) == identity.as_document(plain)
    swept = override(override(BASE, {"model.windowed.k": 5}), {"model.pattern": "intra+windowed"})
    assert swept.run_id == override(BASE, {"model.pattern": "intra+windowed:5"}).run_id


def test_a_document_holds_the_settings_in_the_pattern_and_no_section():
    document = identity.as_document(override(BASE, {"model.pattern": "windowed", "model.windowed.order": "snake"}))
    assert document["model"]["pattern"] == "windowed:order=snake" and "windowed" not in document["model"]


def test_a_stored_model_is_read_without_its_plug_in(monkeypatch):
    config = override(BASE, {"model.pattern": "4*windowed:4+mamba:8 4*mamba:8"})
    document = identity.as_document(config)
    monkeypatch.setattr(MIXERS, "own", {})
    found, unknown = stored_config(document)
    assert not unknown and found.run_id == config.run_id and identity.as_document(found) == document
    assert found.model.layers[0] == "windowed:4+mamba" and found.model.settings_of("mamba").d_state == 8
    with pytest.raises(UserError, match=r"mixer: 'windowed' is unknown.*; allowed: global, intra, mamba"):
        found.model.settings_of("windowed:4")
    with pytest.raises(UserError, match="mixer: 'windowed' is unknown"):
        override(found, {"seed": 3})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pattern": "windowed:0"}, "model.pattern: 'windowed:0': windowed.k: '0': Input should be greater than or eq"),
        ({"pattern": "intra+windowed:x"}, "'intra+windowed:x': windowed.k: 'x': Input should be a valid integer"),
        ({"pattern": "windowed:true"}, "windowed.k: 'true': Input should be a valid integer"),
        ({"pattern": "windowed:side=3"}, "windowed.side: '3': Input should be 1 or 2"),
        ({"pattern": "windowed:order=x"}, "windowed.order: 'x': Input should be 'rows' or 'snake'"),
        ({"pattern": "windowed:6"}, "model.pattern: 'windowed:6': k: 6 needs side 2; allowed: up to 5"),
        (
            {"pattern": "windowed:kk=1"},
            "field of windowed: 'kk' is unknown (did you mean 'k'?); allowed: k, scale, sid",
        ),
        ({"pattern": "windowed:1,k=2"}, "windowed.k is given twice"),
        ({"pattern": "global:2"}, "model.pattern: 'global:2': global has no settings; allowed: global"),
        ({"pattern": "mamba:headdim=48"}, "model.mamba.headdim: 48 does not divide expand * width = 128"),
        ({"windowed.k": 0}, "model.windowed.k: 0: Input should be greater than or equal to 1"),
        ({"global.k": 0}, "model.global: mixer 'global' has no settings"),
        (
            {"pattern": "windowed", "windowed.sizes": "1,2"},
            "model.windowed.sizes: [1, 2] cannot be written in a pattern",
        ),
    ],
)
def test_mistakes_are_one_line(values, said):
    with pytest.raises(UserError) as caught:
        model(**values)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("markov:0", "model.pattern: 'markov:0': markov.w: '0': Input should be greater than or equal to 1"),
        ("markov:x", "markov.w: 'x': Input should be a valid integer"),
        ("window:-1", "window.k: '-1': Input should be greater than or equal to 1"),
        ("linear:1", "linear has no settings"),
        ("gla:0", "gla.rank: '0': Input should be greater than or equal to 1"),
        ("gdn:0", "gdn.expand: '0': Input should be greater than or equal to 1"),
        ("conv:0", "conv.k: '0': Input should be greater than or equal to 1"),
        ("conv:2", "model.conv.k: 2 is even; allowed: odd numbers, 1 or more"),
        (
            "mamba:scan_order=zigzag",
            "mamba.scan_order: 'zigzag': Input should be 'raster', 'snake', 'columns' or 'both'",
        ),
        ("intra|", "mixer: 'intra|' lacks a mixer beside '+' or '|'; allowed: A+B, A|B"),
        ("intra||mamba", "mixer: 'intra||mamba' lacks a mixer"),
    ],
)
def test_parameters_of_our_mixers_out_of_range_are_one_line(pattern, said):
    with pytest.raises(UserError) as caught:
        override(BASE, {"model.pattern": pattern})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_comes_back_from_its_values():
    config = override(BASE, {"model.pattern": "windowed:4", "model.windowed.order": "snake"})
    assert from_dict(RunConfig, json.loads(config.model_dump_json())) == config


def test_reading_a_stored_pattern_loads_no_mixer(monkeypatch):
    """`mvar status` reads configs, and must not wait for torch."""
    monkeypatch.setattr(MIXERS, "own", {})
    monkeypatch.setattr(MIXERS, "paths", {**MIXERS.paths, "slow": "nowhere:Slow"})
    document = identity.as_document(RunConfig())
    document["model"]["pattern"] = "4*slow:2 4*intra+mamba:8"
    assert stored_config(document).config.run_id
    with pytest.raises(ModuleNotFoundError):
        ModelConfig(pattern="slow:2")
