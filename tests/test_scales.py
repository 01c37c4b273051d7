"""The scale schedule: lengths, offsets and spans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvar.errors import UserError
from mvar.scales import PATCH_SIDES, ScaleSchedule

sides = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(lambda s: tuple(sorted(s)))


@pytest.mark.parametrize(("name", "tokens"), [("256", 680), ("512", 2240), ("1024", 9451), ("digits", 30)])
def test_published_schedules(name, tokens):
    assert ScaleSchedule(PATCH_SIDES[name]).num_tokens == tokens


@given(sides)
def test_scales_tile_the_sequence(sides):
    schedule = ScaleSchedule(sides)
    assert [schedule.levels.count(k) for k in range(len(sides))] == list(schedule.lengths)
    assert sum(span.length for span in schedule.steps()) == schedule.span().length == len(schedule.levels)
    for span in schedule.steps():
        assert set(schedule.levels[span.start : span.stop]) == {span.first}
        assert span.visible(span.first) == span.stop


@given(sides, st.data())
def test_local_slices_tile_a_span(sides, data):
    schedule = ScaleSchedule(sides)
    first = data.draw(st.integers(0, schedule.num_scales - 1))
    span = schedule.span(first, data.draw(st.integers(first + 1, schedule.num_scales)))
    tokens = [t for scale in span.scales for t in range(span.length)[span.local(scale)]]
    assert tokens == list(range(span.length))


@pytest.mark.parametrize("wrong", [(), (0, 1), (2, 1), (1, 2.5)])
def test_wrong_sides(wrong):
    with pytest.raises(UserError, match="patch_sides"):
        ScaleSchedule(wrong)


@pytest.mark.parametrize("ends", [(-1, 2), (1, 1), (0, 5)])
def test_wrong_span(ends):
    with pytest.raises(UserError, match="span"):
        ScaleSchedule((1, 2, 3, 4)).span(*ends)
