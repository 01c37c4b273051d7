"""Between logged steps the host waits for nothing on the device, and batches come in copies that nobody waits for."""

import json
import types
from contextlib import contextmanager

import pytest
import torch
from fake_gpu import WAITS
from torch.utils._python_dispatch import TorchDispatchMode

from mvar import layout
from mvar.config import ModelConfig, RuntimeConfig, TokenizerConfig, TokenSpace, TrainConfig
from mvar.runs import clock
from mvar.tokenizer.model import Tokenizer
from mvar.training import loop, numerics
from mvar.training.feed import Feed
from mvar.training.generator import GeneratorObjective
from mvar.training.loop import _Training
from mvar.transformer import ScaleTransformer


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITS:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def looks_seldom(folder, precision="fp32", **runtime):
    """A training of seven steps, three between rows, that looks at losses as it does on a GPU."""
    tokenizer = Tokenizer(TokenizerConfig(patch_sides=(1, 2), vocab_size=8, width=8, channel_multipliers=(1, 2)), 1)
    space = TokenSpace((1, 2), 8, tokenizer.config.code_channels, 3)
    model = ScaleTransformer(ModelConfig(width=16, depth=2, num_heads=2, drop_path=0.2), space)
    cache = types.SimpleNamespace(labels=[0, 1, 2, 0], tokens=torch.randint(8, (4, 5)).numpy())
    train = TrainConfig(steps=7, batch_size=2, precision=precision)
    objective = GeneratorObjective(model, tokenizer.quantize, cache, train, 0)
    training = _Training(objective, train, folder, RuntimeConfig(device="cpu", log_every=3, **runtime), 0)
    training.looks_each_step = False
    return training


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nothing_is_read_between_logged_steps(tmp_path, monkeypatch, precision):
    """The loop's own steps; on a CPU it looks at every loss, because that costs nothing there."""
    training = looks_seldom(tmp_path, precision, checkpoint_every=10)
    by_step, waits = [], Waits()
    lists = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda values: waits.seen.append("tolist") or lists(values))
    with waits:
        training.run(0, lambda done, steps: by_step.append(len(waits.seen)), None)
    training.close()
    new = [after - before for before, after in zip([0, *by_step], by_step, strict=False)]
    assert [count > 0 for count in new] == [True, False, True, False, False, True, True]


def test_the_clock_of_steps_runs_until_the_device_has_done_them(tmp_path, monkeypatch):
    """Each takes the device a second, which the host waits for when it looks: for a row, or for a checkpoint."""
    training, now = looks_seldom(tmp_path, checkpoint_every=2), [0.0]
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    look = training._look

    def wait():
        now[0] += len(training.unchecked)
        look()

    monkeypatch.setattr(training, "_look", wait)
    training.run(0, None, None)
    training.close()
    rows = [json.loads(line) for line in (tmp_path / layout.METRICS).read_text().splitlines()]
    times = [(row["step"], row["train/step_ms"], row["train/elapsed_s"]) for row in rows]
    assert times == [(done, 1000, done) for done in (1, 3, 6, 7)] and training.train_s == now[0] == 7


class Rows:
    """A tensor as the feed sees it."""

    def __init__(self, number, streams):
        self.number, self.streams, self.pinned = number, streams, False

    def pin_memory(self):
        self.pinned = True
        return self

    def to(self, device, non_blocking=False):
        assert self.pinned and non_blocking and device.type == "cuda"
        self.streams.queue(f"copy {self.number}")
        return self

    def record_stream(self, stream):
        self.streams.kept.append((self.number, stream))


class Streams:
    """In place of a GPU's: what is queued on each, and which of the other's it waits for."""

    def __init__(self, monkeypatch):
        self.current, self.queued, self.kept = "main", {"main": [], "copies": []}, []
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: "copies")
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(wait_stream=self.wait))

    def queue(self, what):
        self.queued[self.current].append(what)

    def wait(self, other):
        self.queue(f"wait for {self.queued[other][-1]}")

    @contextmanager
    def on(self, stream):
        self.current, before = stream, self.current
        yield
        self.current = before


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_for_a_gpu_are_pinned_and_copied_beside_its_work(monkeypatch, workers):
    """A copy waits for nothing that is queued; what works on it waits for that copy alone, and keeps its memory."""
    streams = Streams(monkeypatch)
    objective = types.SimpleNamespace(load=lambda rows: rows, decodes=False)
    part, device = (lambda step: [(0, (Rows(step, streams),))]), torch.device("cuda")
    with Feed(objective, part, range(3), workers, device) as feed:
        for step in range(3):
            first, (rows,) = feed.next()
            assert (first, rows.number) == (0, step)
            streams.queue(f"work on {step}")
        with pytest.raises(StopIteration):
            feed.next()
    assert streams.queued["copies"] == ["copy 0", "copy 1", "copy 2"]
    assert streams.queued["main"] == [f"{what} {k}" for k in range(3) for what in ("wait for copy", "work on")]
    assert [number for number, _ in streams.kept] == [0, 1, 2]


def test_precision_of_products_is_a_setting_of_gpus(monkeypatch):
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, tf32, wanted in (("auto", True, "high"), ("auto", False, "highest"), ("cpu", True, "highest")):
        numerics.prepare_process(RuntimeConfig(device=device, tf32=tf32))
        assert torch.get_float32_matmul_precision() == wanted
        assert torch.backends.cudnn.allow_tf32 is (wanted == "high")  # torch's own default is on
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(before)


def test_rates_that_plans_rest_on_are_timed_as_runs_compute(monkeypatch):
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(clock, "_gemm_rate", lambda *_: torch.get_float32_matmul_precision())
    clock.gemm_rate.cache_clear()
    try:
        assert [clock.gemm_rate("cuda", "fp32", tf32) for tf32 in (True, False)] == ["high", "highest"]
    finally:
        clock.gemm_rate.cache_clear()
    assert torch.get_float32_matmul_precision() == before


def test_so_are_deterministic_kernels():
    for device, wanted, expected in (("cuda", True, True), ("cuda", False, False), ("cpu", True, False)):
        with numerics.reproducible(RuntimeConfig(deterministic=wanted), torch.device(device)):
            assert torch.are_deterministic_algorithms_enabled() is expected
    assert not torch.are_deterministic_algorithms_enabled()
