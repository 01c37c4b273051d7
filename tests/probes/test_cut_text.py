"""The text of a cut: what is read is written again, and a mistake is one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvar.errors import UserError
from mvar.probes.cut_text import KINDS, OF_KEYS, Cut, parse_cut

numbers = st.lists(st.integers(0, 40), unique=True, max_size=4).map(lambda found: tuple(sorted(found)))


@st.composite
def cuts(draw):
    target = draw(st.sampled_from([*OF_KEYS, "branch", "state"]))
    found = {"kind": draw(st.sampled_from(list(KINDS))), "layers": draw(numbers)}
    if target == "scale" or (target == "state" and draw(st.booleans())):
        found["scale"] = draw(st.integers(0, 20))
    if target in OF_KEYS:
        found |= {"heads": draw(numbers), "queries": draw(st.none() | st.integers(0, 20))}
    mixers = st.sampled_from(["global", "intra", "a_b2"])
    return Cut(target, mixer=draw(mixers if target == "branch" else st.none() | mixers), **found)


@given(cuts())
def test_every_cut_is_read_back_from_its_text(cut):
    assert parse_cut(cut.text) == cut and parse_cut(str(cut)).text == cut.text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("own,layer=0-2", "own,layer=0+1+2"),
        ("own,head=1,layer=0", "own,layer=0,head=1"),
        ("own,kind=cut", "own"),
        ("scale:2,queries=3", "scale:2,queries=3"),
        ("branch:mamba,kind=mean", "branch:mamba,kind=mean"),
    ],
)
def test_several_texts_are_one_cut(text, same):
    assert parse_cut(text).text == same


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cut: '' is unknown; allowed: own, coarser, scale:K, all, branch:NAME, state, state:K"),
        ("owm", "cut: 'owm' is unknown (did you mean 'own'?); allowed: own, "),
        ("scale", "cut: 'scale'; allowed: own, coarser, scale:K"),
        ("own:2", "cut: 'own:2'; allowed: own"),
        ("branch,layer=0", "cut: 'branch,layer=0'; allowed: own, coarser, scale:K, all, branch:NAME"),
        ("branch:", "cut: 'branch:' is unknown (did you mean 'branch:NAME'?)"),
        ("state:", "cut: 'state:' is unknown"),
        ("scale:x", "cut 'scale:x': scale 'x'; allowed: a number"),
        ("scale:1+2", "cut 'scale:1+2': scale '1+2'; allowed: a number"),
        ("own,layers=2", "cut 'own,layers=2': option: 'layers' is unknown (did you mean 'layer'?)"),
        ("own,layer=-1", "cut 'own,layer=-1': layer '-1'; allowed: a number, 0+2 or 0-3"),
        ("own,layer=3-1", "cut 'own,layer=3-1': layer '3-1'; allowed: a number"),
        ("own,layer=1,layer=2", "gives layer twice; allowed: once"),
        ("own,kind=zero", "kind: 'zero' is unknown; allowed: cut, mean, resample"),
        ("state,head=1", "cut 'state,head=1': head: only for keys; allowed: with own, coarser, scale, all"),
        ("branch:mamba,queries=1", "queries: only for keys"),
    ],
)
def test_mistakes_are_one_line(text, said):
    with pytest.raises(UserError) as error:
        parse_cut(text)
    assert said in str(error.value) and "\n" not in str(error.value)
