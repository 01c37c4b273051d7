"""Settings of what is chosen by name: a section of that name, validated, and in ids only where it is used."""

import pytest

from mvar.config import Config, DataConfig, RunConfig, identity, override, stored_config
from mvar.data.sources.contract import DataSource
from mvar.errors import UserError
from mvar.pattern import parse_pattern
from mvar.registries import KINDS, MIXERS, SOURCES, register

BASE = RunConfig()


class Striped(DataSource):
    """A data source as far as a config knows it."""

    check = open = None

    class Settings(Config):
        width_px: int = 2
        colours: tuple[int, ...] = (0, 255)


@pytest.fixture(autouse=True)
def own(monkeypatch):
    for registry in KINDS.values():
        monkeypatch.setattr(registry, "own", {})
        monkeypatch.setattr(registry, "owners", {})
    register("source", "striped")(Striped)


def test_settings_are_read_as_their_fields_want_them():
    config = override(BASE, {"data.name": "striped", "data.striped.width_px": "3", "data.striped.colours": "1,2"})
    assert config.data.settings_of("striped") == Striped.Settings(width_px=3, colours=(1, 2))
    assert override(config, {"data.striped.width_px": 4}).data.settings_of("striped").colours == (1, 2)
    assert BASE.data.settings_of("striped") == Striped.Settings() and BASE.data.settings_of("digits") is None


def test_they_are_in_ids_only_where_they_are_used_and_differ():
    used = override(BASE, {"data.name": "striped"})
    for same in ({"data.striped.width_px": 2}, {"data.striped.colours": [0, 255]}):
        assert override(used, same).run_id == used.run_id and override(used, same).key == used.key
        assert identity.as_document(override(used, same)) == identity.as_document(used)
    other = override(used, {"data.striped.width_px": 3})
    assert other.run_id != used.run_id and other.tokenizer_id != used.tokenizer_id and other.key != used.key
    unused = override(BASE, {"data.striped.width_px": 3})
    assert (unused.run_id, unused.key, unused.evaluation_id) == (BASE.run_id, BASE.key, BASE.evaluation_id)
    assert identity.as_document(unused) == identity.as_document(BASE)
    assert override(unused, {"data.name": "striped"}).run_id == other.run_id  # kept until it is used


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("data.striped.width_px", "x", r"^data.striped.width_px: 'x': Input should be a valid integer"),
        ("data.striped.widht", 1, r"^field data.striped.widht: 'widht' is unknown.*allowed: width_px, colours"),
        ("data.digits.size", 1, r"^data.digits: data.name 'digits' has no settings"),
        ("data.zzz.size", 1, r"^field data: 'zzz' is unknown; allowed: name, root, .*, striped$"),
        ("data.striped", 1, r"^data.striped: is a section; allowed: its fields, e.g. data.striped.width_px=VALUE"),
    ],
)
def test_mistakes_in_them_are_one_line(name, value, said):
    with pytest.raises(UserError, match=said) as caught:
        override(override(BASE, {"data.name": "striped"}), {name: value})
    assert "\n" not in str(caught.value)


def test_what_is_unknown_stays_an_error():
    with pytest.raises(UserError, match=r"data.foo: 1: Extra inputs are not permitted"):
        override_raw({"foo": 1})
    with pytest.raises(UserError, match=r"data.foo: .*: Extra inputs are not permitted"):
        override_raw({"foo": {"a": 1}})


def override_raw(values):
    from mvar.config import from_dict

    return from_dict(DataConfig, DataConfig().model_dump() | values)


def test_a_stored_config_is_read_without_its_plug_in(monkeypatch):
    config = override(BASE, {"data.name": "striped", "data.striped.width_px": 3})
    document = identity.as_document(config)
    assert document["data"]["striped"] == {"width_px": 3}
    document["model"]["pattern"] = "recent+mamba"
    monkeypatch.setattr(SOURCES, "own", {})
    found, unknown = stored_config(document)
    assert not unknown and found.data.name == "striped" and found.model.pattern == "recent+mamba"
    assert found.tokenizer_id == config.tokenizer_id  # the ids are those that it was made under
    assert [(r, n) for r, n in found.chosen() if n not in r] == [(SOURCES, "striped"), (MIXERS, "recent")]
    with pytest.raises(UserError, match=r"data.name: 'striped' is unknown; allowed: digits, imagefolder"):
        override(found, {"seed": 1})
    with pytest.raises(UserError, match=r"mixer: 'recent' is unknown; allowed: global, intra, mamba"):
        parse_pattern("recent", 8)
