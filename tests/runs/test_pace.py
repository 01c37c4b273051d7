"""The time that is said to be left, on made-up clocks."""

import pytest

from mvar.config import override
from mvar.presets import PRESETS
from mvar.runs.display import left_text
from mvar.runs.pace import STALLED_S, Pace
from mvar.runs.plan import tasks_of
from mvar.runs.store import Store


def test_it_falls_as_work_proceeds_and_is_true_at_an_even_speed():
    pace = Pace({"a": 100.0, "b": 300.0}, 1)
    assert pace.left_s() is None and pace.share == 0
    left = []
    for key, flops in (("a", 100), ("b", 300)):
        pace.advance(20, {key: 0.0})  # getting under way
        for second in range(10, flops + 1, 10):
            pace.advance(10, {key: second / flops})
            left.append(pace.left_s())
        pace.end(key, done=True)
    assert left == [None, *(pytest.approx(rest) for rest in range(380, -1, -10))]
    assert pace.left_s() == 0 and pace.share == 1


def test_resumed_work_is_not_speed():
    fresh, resumed = Pace({"a": 1000.0}, 1), Pace({"a": 1000.0}, 1)
    for second in range(1, 101):
        fresh.advance(1, {"a": second / 1000})
        resumed.advance(1, {"a": 0.5 + second / 1000})
    assert resumed.share == pytest.approx(0.6)
    assert fresh.left_s() == pytest.approx(900, rel=0.02)
    assert resumed.left_s() == pytest.approx(400, rel=0.02)  # at 1 a second, not at 6


def test_several_at_a_time_share_the_rest_but_the_last_has_one_worker():
    pace = Pace({"a": 100.0, "b": 100.0, "c": 100.0}, 2)
    for second in range(100):
        pace.advance(1, {"a": second / 100, "b": second / 100})
        if second == 50:
            assert pace.left_s() == pytest.approx(100, rel=0.05)  # 50 of each, and all of c
    for key in ("a", "b"):
        pace.end(key, done=True)
    assert pace.left_s() == pytest.approx(100, rel=0.05)  # c has one worker, however many are idle
    pace.advance(50, {"c": 0.5})
    assert 45 < pace.left_s() < 90


def test_what_failed_is_neither_left_nor_speed():
    pace = Pace({"a": 100.0, "b": 100.0, "c": 100.0}, 1)
    pace.advance(5, {"a": 0.01})
    pace.advance(5, {"a": 0.06})
    before = pace.left_s()
    pace.end("b", done=False)
    assert pace.left_s() == pytest.approx(before * 194 / 294)
    assert pace.share == pytest.approx(1.06 / 3)


def test_work_without_a_formula_says_nothing_of_the_pace():
    pace = Pace({"extractor": 0.0, "a": 100.0}, 1)
    pace.advance(500, {"extractor": 0.5})
    pace.end("extractor", done=True)
    assert pace.share == 0 and pace.left_s() is None
    for second in range(1, 51):
        pace.advance(1, {"a": second / 100})
    assert pace.left_s() == pytest.approx(50, rel=0.05)
    assert Pace({"extractor": 0.0}, 1).share == 1


def test_each_kind_of_work_has_its_own_speed():
    """A stage of ten times as many FLOPs a second makes the rest no faster."""
    pace = Pace({"stage": 1000.0, "a": 100.0, "b": 100.0}, 1, {"stage": "tokenizer", "a": "run", "b": "run"})
    for second in range(1, 101):
        pace.advance(1, {"stage": second / 100})
    pace.end("stage", done=True)
    pace.advance(10, {"a": 0.0})
    for second in range(1, 51):
        pace.advance(1, {"a": second / 100})
    assert pace.left_s() == pytest.approx(150, rel=0.05)


def test_what_stands_still_has_no_time_left():
    pace = Pace({"a": 1000.0}, 1)
    for second in range(1, 101):
        pace.advance(1, {"a": second / 1000})
    assert left_text(pace.left_s(), pace.still_s).startswith(", about 15 min")
    for _ in range(int(STALLED_S) + 60):
        pace.advance(1, {"a": 0.1})
    assert left_text(pace.left_s(), pace.still_s) == ", nothing has moved for 3 min 00 s"
    pace.advance(1, {"a": 0.1}, moves=True)  # in a part whose work is not counted
    assert pace.still_s == 0 and pace.left_s() == pytest.approx(900 * 281 / 100, rel=0.05)


@pytest.mark.parametrize("preset", ["smoke", "fashion32-small"])
def test_every_shared_stage_is_counted(preset, tmp_path, monkeypatch):
    monkeypatch.setattr("mvar.runs.stage_costs.num_images", lambda config, store: (6000, 1000))
    flops = {task.kind: task.flops for task in tasks_of([PRESETS[preset]], Store(tmp_path))}
    assert all(flops[kind] > 0 for kind in ("tokenizer", "extractor", "tokens", "floors")), flops
    longer = override(PRESETS[preset], {"evaluation.classifier_steps": 4 * PRESETS[preset].evaluation.classifier_steps})
    more = {task.kind: task.flops for task in tasks_of([longer], Store(tmp_path))}
    assert more["extractor"] == 4 * flops["extractor"] and more["tokenizer"] == flops["tokenizer"]
