"""Runs that would take ten times as long as with `global` layers are told of before they start."""

import pytest
from tiny_runs import CONFIG

from mvar.config import override
from mvar.runs import runner, slowness
from mvar.runs.store import Store


def config(pattern, **values):
    return override(CONFIG, {"model.pattern": pattern, "runtime.device": "cpu", **values})


@pytest.fixture
def timed(monkeypatch):
    """A layer takes so many seconds."""
    seconds = {"global": 1.0, "intra": 9.0, "conv": 12.0}
    monkeypatch.setattr(slowness, "layer_seconds", lambda config, layer, images: seconds[layer])


def test_ten_times_is_told_once_a_model_with_both_times(timed, capsys):
    # Beside the layers is the head: with it nothing is quite as much slower as its layers are.
    runs = [config("conv"), config("conv", seed=1), config("intra"), config("global"), config("conv global")]
    slowness.warn_of_slow_runs(runs, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mvar: warning: {runs[0].run_id}: layers conv take about 11 times as long to")
    ours, base = (s * CONFIG.train.steps for s in slowness.step_seconds(runs[0]) or (0, 0))
    assert f"about {slowness.duration(ours)}, not {slowness.duration(base)}" in line
    assert ours / base == pytest.approx(11, rel=0.1)


def test_what_takes_less_than_a_minute_is_not_told(timed, monkeypatch, capsys):
    ours, _ = slowness.step_seconds(config("conv")) or (0, 0)
    for least, lines in ((ours * CONFIG.train.steps + 1, 0), (ours * CONFIG.train.steps - 1, 1)):
        monkeypatch.setattr(slowness, "LEAST_S", least)
        slowness.warn_of_slow_runs([config("conv")], 1)
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_global_runs_and_those_on_a_gpu_are_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(slowness, "layer_seconds", lambda *_: 1 / 0)
    slowness.warn_of_slow_runs([config("global")], 1)
    monkeypatch.setattr(slowness, "resolve_device", lambda runtime: "cuda")
    slowness.warn_of_slow_runs([config("conv")], 1)
    assert not capsys.readouterr().err


def test_a_layer_is_really_timed_and_random_numbers_stay():
    import torch

    before = torch.random.get_rng_state()
    for shared in (False, True):
        ours, base = slowness.step_seconds(config("intra|conv", **{"model.shared_adaln": shared})) or (0, 0)
        assert ours > 0 and base > 0
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_is_told_of_what_is_not_trained_yet_and_before_anything_starts(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "warn_of_slow_runs", lambda configs, threads: asked.append([c.run_id for c in configs]))
    monkeypatch.setattr(runner._Runner, "run", lambda self: asked.append("run"))
    store, two = Store(tmp_path), [config("conv"), config("intra")]
    store.run(two[0].run_id).path.mkdir(parents=True)
    store.run(two[0].run_id).weights.write_bytes(b"")
    runner.run_all(two, store, 1)
    assert asked == [[two[1].run_id], "run"]
