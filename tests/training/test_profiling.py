"""`mvar profile`: time by part and a trace; and how fast a training goes, in its metrics and in `mvar status`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.autograd import DeviceType

from mvar.cli import main
from mvar.commands.status_table import Row, _speed
from mvar.config import override
from mvar.data.online import FreshCrops
from mvar.presets import PRESETS
from mvar.runs import at_hand
from mvar.runs.gpu_plan import Setting, gpu_hours
from mvar.runs.gpus import Machine
from mvar.tokenizer.model import Tokenizer
from mvar.training import cards, profiling
from mvar.training.generator import OnlineObjective
from mvar.training.throughput import throughput
from mvar.transformer import ScaleTransformer

TINY = (
    "--set model.depth=2 model.width=16 model.num_heads=2 model.mamba.headdim=8 model.mamba.d_state=8 "
    "model.pattern=intra+mamba train.batch_size=4 runtime.threads=1"
)


@pytest.mark.slow
def test_a_profile_has_every_part_of_a_step(tmp_path, capsys):
    trace = tmp_path / "trace.json"
    assert main(["profile", "smoke", *TINY.split(), "--steps", "2", "--trace", str(trace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = {"attention", "scan", "mlp", "norms and gates", "embeddings", "head", "loss", "optimizer", "data", "other"}
    assert found["parts"].keys() == parts
    assert all(spent > 0 for spent in found["parts"].values())
    assert 0.5 * found["step_ms"] < sum(found["parts"].values()) < 1.05 * found["step_ms"]
    assert found["parts"]["scan"] > found["parts"]["mlp"]  # its backward pass is counted with it
    assert found["throughput"].keys() == {"train/tokens_per_s"}  # a CPU's rate is not known
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"mvar::scan", "mvar::optimizer", "mvar::data"} <= names


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["smok"], "config: 'smok' is unknown"),
        (["smoke", "--steps", "0"], "steps: 0; allowed: 1 or more"),
        (["smoke", "--trace", "nowhere/t.json"], "trace: nowhere is no directory; allowed"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, line):
    assert main(["profile", *arguments]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_steps_are_made_as_a_run_makes_them_on_the_gpu_at_hand(tmp_path, monkeypatch):
    """Where a preset leaves it open: all of its batch at once would be too much."""
    profiles = []
    chosen = {"strategy": "ddp", "micro_batch": 2, "checkpoint_activations": "selective"}
    monkeypatch.setattr(at_hand, "settled", lambda config: config.runtime.model_copy(update=chosen))
    monkeypatch.setattr(
        profiling,
        "profiled",
        lambda config, *_: profiles.append(config) or profiling.Profile({}, 1.0, {"train/tokens_per_s": 1.0}),
    )
    assert main(["profile", "imagenet256-d16-online", "--trace", str(tmp_path / "trace.json")]) == 0
    (config,) = profiles
    assert {name: getattr(config.runtime, name) for name in chosen} == chosen and not config.runtime.is_open
    assert config.train == PRESETS["imagenet256-d16-online"].train


def test_a_step_on_a_gpu_ends_when_the_gpu_has_done_it(monkeypatch, tmp_path):
    """What it did stands in a profile twice: with the operator that queued it, and by itself."""
    order: list[str] = []

    def event(name: str, device: DeviceType, ms: float, on_device_ms: float) -> SimpleNamespace:
        spent = SimpleNamespace(elapsed_us=lambda: ms * 1e3)
        fields = {"self_device_time_total": on_device_ms * 1e3, "cpu_parent": None, "sequence_nr": -1}
        return SimpleNamespace(name=name, device_type=device, time_range=spent, **fields)

    cpu, gpu = DeviceType.CPU, DeviceType.CUDA
    events = [event("ProfilerStep#3", cpu, 5, 0), event("ProfilerStep#3", gpu, 4, 4)]
    events += [event("aten::mm", cpu, 1, 3), event("gemm", gpu, 3, 3)]

    @contextmanager
    def profiler(on_trace_ready: Any, **_: Any) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(step=lambda: order.append("step"))
        on_trace_ready(SimpleNamespace(export_chrome_trace=lambda path: None, events=lambda: events))

    def fit(*_: Any, progress: Any, seed: int) -> None:
        for done in (1, 2, 3):
            progress(done, 3)

    stand_ins = {"profile": profiler, "fit": fit, "resolve_device": lambda runtime: "cuda"}
    stand_ins |= {"random_objective": lambda *_: (None, SimpleNamespace(train=None)), "_ranges": nullcontext}
    stand_ins |= {"rate_of": lambda *_: None, "throughput": lambda *_: {}}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(profiling, name, stand_in)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    found = profiling.profiled(PRESETS["smoke"], 1, tmp_path / "trace.json")
    assert order == ["wait", "step"] * 3
    assert (found.step_ms, found.parts) == (5, {"other": 3})


def test_speed_of_a_gpu(monkeypatch):
    """Half of an H100's rate, on two of them; on a card that is not known no share is told."""
    work, device = SimpleNamespace(tokens=1000, flops=int(989e12)), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    wanted = {"train/tokens_per_s": 1000.0, "train/mfu": 0.5, "train/peak_mib": 3.0}
    assert throughput(work, 1.0, device, cards.rate_of(device, "bf16", False), 2) == wanted
    assert throughput(work, 1.0, device, cards.rate_of(device, "fp32", True), 2)["train/mfu"] == 1.0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another")
    assert cards.rate_of(device, "bf16", False) is cards.rate_of(torch.device("cpu"), "bf16", False) is None
    assert throughput(work, 1.0, device, None, 2).keys() == {"train/tokens_per_s", "train/peak_mib"}
    assert throughput(work, 2.0, torch.device("cpu"), None, 1) == {"train/tokens_per_s": 500.0}


@pytest.mark.parametrize(("precision", "tf32"), [("bf16", False), ("bf16", True), ("fp32", False)])
def test_mfu_of_fresh_crops_is_what_the_plan_counts_with(monkeypatch, precision, tf32):
    """Their encoding is work too, at the rate of fp32: a run that takes as long as planned has the plan's MFU."""
    settings = {"train.tokens": "online", "train.precision": precision, "runtime.tf32": tf32, "train.steps": 5}
    config = override(PRESETS["smoke"], settings)
    with torch.device("meta"):
        model = ScaleTransformer(config.model, config.token_space)
        tokenizer = Tokenizer(config.tokenizer, config.data.channels)
    crops = FreshCrops(cast("Any", SimpleNamespace(labels=[0])), tokenizer, 0)
    objective = OnlineObjective(model, crops, config.train, 0)
    assert objective.encoding_flops > 0 < objective.flops
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    hours = gpu_hours(config, Machine.parse("2xh100-80gb"), Setting("ddp", "none", 1, 1.0), 0.4)
    rate, encoding = (cards.rate_of(torch.device("cuda"), p, tf32) for p in (precision, "fp32"))
    told = throughput(objective, hours * 3600 / 5 / 2, torch.device("cuda"), rate, 2, encoding)
    assert told["train/mfu"] == pytest.approx(0.4)


def test_a_cards_rate_is_that_of_the_runs_own_settings(monkeypatch):
    """What MFU is of is what the plan counts with; a card is found by the name that its driver gives it."""
    device = torch.device("cuda")
    for name, card in (
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100pcie"),
        ("NVIDIA H200 NVL", "h200nvl"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        machine, settings = Machine.parse(f"1x{card}-80gb"), [("bf16", False), ("fp32", True), ("fp32", False)]
        rates = [cards.rate_of(device, *setting) for setting in settings]
        assert rates == [machine.flops_per_s(*setting) for setting in settings]
        assert rates[0] > rates[1] >= rates[2]  # half precision, TF32, fp32


def test_a_card_is_known_by_all_of_its_name():
    """Names as drivers give them; one that is called after a faster card is not taken for it."""
    known = {
        "a100": ["NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"],
        "h100": ["NVIDIA H100 80GB HBM3"],
        "h100pcie": ["NVIDIA H100 PCIe"],
        "h100nvl": ["NVIDIA H100 NVL"],
        "h200": ["NVIDIA H200"],
        "h200nvl": ["NVIDIA H200 NVL"],
        "b200": ["NVIDIA B200"],
        "l40s": ["NVIDIA L40S"],
        "rtx4090": ["NVIDIA GeForce RTX 4090"],
    }
    assert known.keys() == cards.CARDS.keys()
    assert {card: [name for name in names if cards.card_of(name) == card] for card, names in known.items()} == known
    strange = (
        "GeForce RTX 4090 D",
        "GeForce RTX 4090 Laptop GPU",
        "GH200 480GB",
        "GB200",
        "H20",
        "L40",
        "A100X",
        "A10",
    )
    slices = ("A100-SXM4-40GB MIG 1g.5gb", "H100 80GB HBM3 MIG 3g.40gb", "A100-SXM-64GB", "A100X", "A800-SXM4-80GB", "")
    assert [name for name in strange + slices if cards.card_of(f"NVIDIA {name}")] == []


def test_status_tells_what_is_known():
    row = Row("a", False, "running", tokens_per_s=12345.6, mfu=0.412, peak_mib=60000.0)
    assert _speed(row) == "12,346 tokens/s, MFU 41%, 62.9 GB"
    assert (
        _speed(Row("a", False, "running", tokens_per_s=10.0)) == "10 tokens/s" and _speed(Row("a", True, "done")) == ""
    )
