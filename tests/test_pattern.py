"""Layer patterns and partial replacement."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvar.errors import UserError
from mvar.pattern import (
    format_pattern,
    map_mixers,
    mixer_texts,
    mixers_of,
    parse_branches,
    parse_layer,
    parse_mixer,
    parse_pattern,
    replace_layers,
    replaced_layers,
)
from mvar.registries import MIXERS as REGISTERED

names = st.lists(st.sampled_from(sorted(REGISTERED.names())), min_size=1, max_size=3, unique=True)
layer = st.builds(
    lambda mixers, joints: mixers[0] + "".join(a + b for a, b in zip(joints, mixers[1:], strict=False)),
    names,
    st.lists(st.sampled_from("+|"), min_size=2, max_size=2),
)


@given(st.lists(layer, min_size=1, max_size=12).map(tuple))
def test_text_form_reads_back(layers):
    assert parse_pattern(format_pattern(layers), len(layers)) == layers


def test_examples():
    assert parse_pattern("intra+mamba", 3) == ("intra+mamba",) * 3
    assert parse_pattern("2*intra+mamba 1*global", 3) == ("intra+mamba", "intra+mamba", "global")
    assert replace_layers("global", "first:2", "intra+mamba", 8) == "2*intra+mamba 6*global"
    assert replace_layers("global", "all", "intra+mamba", 8) == "intra+mamba"


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ("none", ()),
        ("all", (0, 1, 2, 3, 4, 5)),
        ("first:2", (0, 1)),
        ("last:2", (4, 5)),
        ("first:0", ()),
        ("every:2", (1, 3, 5)),
        ("every:6", (5,)),
        ("5,0,3", (0, 3, 5)),
    ],
)
def test_replacement_rules(rule, numbers):
    assert replaced_layers(rule, 6) == numbers


@pytest.mark.parametrize("rule", ["first:7", "every:0", "0,0", "6", "first", "middle:2", "-1", "first:-1", "1,"])
def test_wrong_rules_say_what_is_allowed(rule):
    with pytest.raises(UserError, match=r"model\.replace: .* allowed: none, all, first:N.*depth 6"):
        replaced_layers(rule, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("globl", "did you mean 'global'"),
        ("9*global", "names 9 layers; model.depth is 4"),
        ("global intra", "names 2 layers; model.depth is 4"),
        ("", "empty"),
        ("2*", "not a group"),
        ("intra+intra", "names a mixer twice"),
        ("intra|mamba+intra", "'intra|mamba+intra' names a mixer twice; allowed: each at most once in a layer"),
        ("intra|", "mixer: 'intra|' lacks a mixer beside '+' or '|'; allowed: A+B, A|B"),
        ("|intra", "'|intra' lacks a mixer"),
        ("intra+|mamba", "'intra+|mamba' lacks a mixer"),
        ("intra||mamba", "'intra||mamba' lacks a mixer"),
        ("intra|mmaba", "mixer: 'mmaba' is unknown (did you mean 'mamba'?)"),
        ("99999*global", "more than 10000"),
    ],
)
def test_wrong_patterns(text, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse_pattern(text, 4)
    assert "\n" not in str(caught.value)


def test_branches_follow_each_other_and_mixers_of_one_are_beside_each_other():
    assert parse_branches("intra|mamba:8+conv") == (("intra", "mamba:8"), ("conv",))
    assert parse_layer("intra|mamba:8+conv") == ("intra", "mamba:8", "conv")
    assert map_mixers("intra|mamba:8+conv", str.upper) == "INTRA|MAMBA:8+CONV"
    assert mixers_of("4*intra|mamba:8+conv 2*gla") == {"intra", "mamba", "conv", "gla"}
    assert replace_layers("intra|gla", "last:1", "conv|markov:2", 3) == "2*intra|gla conv|markov:2"


def test_unknown_mixer_lists_the_registry():
    with pytest.raises(UserError, match="allowed: global, intra, mamba"):
        parse_layer("attention")


def test_mixers_may_have_settings():
    assert parse_pattern("intra+mamba:32 1*global", 2) == ("intra+mamba:32", "global")
    assert parse_mixer("window:3,dilation=2") == ("window", {"": "3", "dilation": "2"})
    assert parse_mixer("mamba") == ("mamba", {})
    assert mixers_of("4*intra+mamba:d_conv=2 2*mamba:8,expand=1") == {"intra", "mamba"}
    assert mixer_texts("4*intra+mamba:d_conv=2 mamba") == {"intra", "mamba:d_conv=2", "mamba"}
    assert replace_layers("global", "first:2", "mamba:8,expand=1", 4) == "2*mamba:8,expand=1 2*global"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mamba:", "mixer: 'mamba:': '' is no setting; allowed: NAME:VALUE,FIELD=VALUE"),
        ("mamba:8,", "mixer: 'mamba:8,': '' is no setting"),
        ("mamba:=8", "mixer: 'mamba:=8': '=8' is no setting"),
        ("mamba:8:9", "mixer: 'mamba:8:9': '8:9' is no setting"),
        ("mamba:D=8", "mixer: 'mamba:D=8': 'D=8' is no setting"),
        ("mamba:8,9", "mixer: 'mamba:8,9': '9' has no name, and is not the first"),
        ("mamba:d_state=8,9", "'9' has no name, and is not the first"),
        ("mamba:d_state=8,d_state=9", "mixer: 'mamba:d_state=8,d_state=9' gives d_state twice"),
        ("mamba:8+mamba:9", "mixer: 'mamba:8+mamba:9' names a mixer twice"),
        ("mmaba:8", "mixer: 'mmaba' is unknown (did you mean 'mamba'?); allowed: global, intra, mamba"),
    ],
)
def test_wrong_settings_are_one_line(text, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse_pattern(text, 4)
    assert "\n" not in str(caught.value)


def test_a_pattern_of_a_missing_plug_in_is_read():
    assert parse_pattern("recent:2 3*intra", 4, known=False) == ("recent:2", "intra", "intra", "intra")
    with pytest.raises(UserError, match="is no setting"):
        parse_pattern("recent:", 4, known=False)
