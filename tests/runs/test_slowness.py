"""Runs that would take ten times as long as with `global` layers are told of before they start."""

import pytest
import torch
from tiny_runs import CONFIG

from mvar.config import override
from mvar.kernels.fake_gpu import fake_gpu
from mvar.mixers.conv import ScaleConv
from mvar.presets import PRESETS
from mvar.registries import MIXERS
from mvar.runs import runner, slowness
from mvar.runs.store import Store
from mvar.training.cards import CARDS
from mvar.training.launched import LAUNCH_S, Priced, layer_seconds


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


def test_global_runs_are_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(slowness, "layer_seconds", lambda *_, **__: 1 / 0)
    slowness.warn_of_slow_runs([config("global")], 1)
    assert not capsys.readouterr().err


def token_by_token(self, x, span, state=None):
    """A mixer as a user may write one: a loop over tokens."""
    total, found = torch.zeros_like(x[:, 0]), []
    for token in x.unbind(1):
        total = 0.9 * total + 0.1 * token
        found.append(total.tanh().exp().sin().cos().sigmoid().relu())
    return torch.stack(found, 1), None


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What a launcher sees of one; nothing of it is asked for more."""
    monkeypatch.setattr(slowness, "resolve_device", lambda runtime: "cuda")
    monkeypatch.setattr(slowness, "layer_seconds", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")


@pytest.mark.slow
def test_on_a_gpu_what_goes_token_by_token_is_told_by_its_launches(on_a_gpu, monkeypatch, capsys):
    monkeypatch.setattr(ScaleConv, "forward", token_by_token)
    sizes = {"tokenizer.patch_sides": [1, 2, 3, 4, 6], "data.image_size": 12, "train.steps": 1_000_000}
    runs = [config(pattern, **sizes) for pattern in ("conv", "global", "intra")]
    slowness.warn_of_slow_runs(runs, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mvar: warning: {runs[0].run_id}: layers conv take about ") and line.endswith("counted)")
    told = []
    monkeypatch.setattr(ScaleConv, "forward", lambda self, x, *rest: told.append(x.sum().item()))
    slowness.warn_of_slow_runs(runs[:1], 1)  # what looks at values cannot be counted: nothing is said, and nothing ends
    assert not capsys.readouterr().err and not told


@pytest.mark.slow
def test_no_mixer_of_ours_is_counted_as_ten_times_as_long():
    """Optional kernels are not launched for it, whether they are there or not: there are no values."""
    taken = {name: layer_seconds(PRESETS["digits"], name, 32, "h100") for name in MIXERS.names()}
    assert 0 < max(taken.values()) < slowness.TIMES * taken["global"]


def test_what_is_launched_takes_the_longest_of_launch_bytes_and_products():
    large, small = 4096, 4
    with fake_gpu(), torch.no_grad():
        for size, dtype in ((large, torch.bfloat16), (large, torch.float32), (small, torch.float32)):
            a = torch.zeros(size, size, dtype=dtype, device="cuda")
            with Priced("a100", tf32=False) as product:
                a @ a
            rate = CARDS["a100"].flops_per_s("bf16" if dtype == torch.bfloat16 else "fp32", tf32=False)
            assert product.seconds == max(2 * size**3 / rate, LAUNCH_S)
        a = torch.zeros(large, large, device="cuda")
        with Priced("a100", tf32=False) as priced:
            a.mT.contiguous()[:3].unsqueeze(0)  # one copy, else views
        assert priced.launches == 1 and priced.seconds == 2 * a.nbytes / CARDS["a100"].bytes_per_s
        with Priced("a100", tf32=False) as priced:
            a[0].tanh()
        assert priced.seconds == LAUNCH_S


def test_a_layer_is_really_timed_and_random_numbers_stay():
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
