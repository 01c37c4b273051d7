"""A tiny objective that uses everything random that the loop offers, and comparisons of finished trainings."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mvar.config import OptimConfig, RuntimeConfig
from mvar.training.checkpoint import load_latest
from mvar.training.contract import DataOrder, Objective


class Toy(Objective):
    """Denoise vectors through a layer with dropout; keeps a running count that checkpoints must hold."""

    def __init__(self, dropout: float = 0.2, die_at: int | None = None, batch_size: int = 8) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.data = torch.randn(37, 4)
        self.order = DataOrder(37, batch_size, seed=5)
        self.die_at = die_at
        self.seen = 0

    def batch(self, step, rng):
        clean = self.data[self.order.rows(step)]
        return clean, clean + 0.3 * torch.from_numpy(rng.standard_normal(clean.shape)).float()

    def before_step(self, step, rng, optimizer):
        self.seen += int(rng.integers(10))
        if step % 3 == 1:
            with torch.no_grad():
                self.module[0].bias[self.seen % 8] += 0.1

    def loss(self, batch, step):
        clean, noisy = batch
        if step == self.die_at:
            self.die()
        error = (self.module(noisy) - clean).square().mean()
        return error, {"train/half": error.detach() / 2}

    def die(self):
        raise KeyboardInterrupt

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def toy_optim(**fields) -> OptimConfig:
    return OptimConfig(**({"steps": 12, "batch_size": 8, "base_lr": 0.5, "warmup_fraction": 0.2} | fields))


RUNTIME = RuntimeConfig(device="cpu", threads=1, log_every=2, checkpoint_every=3)


def split(parts: int) -> RuntimeConfig:
    """The runtime with a batch in so many micro-batches."""
    return RUNTIME.model_copy(update={"accumulate": parts})


def rows_of(directory: Path, times: bool = False) -> list[dict]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if times or not k.endswith(("_s", "_ms"))} for row in rows]


def flatten(state, prefix=""):
    if isinstance(state, dict):
        return {k: v for name, part in state.items() for k, v in flatten(part, f"{prefix}/{name}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, part in enumerate(state) for k, v in flatten(part, f"{prefix}/{i}").items()}
    return {prefix: state}


def assert_identical(a: Path, b: Path) -> None:
    """The two trainings ended with the same bits: weights, optimizer, scaler, objective, metrics."""
    (step_a, state_a), (step_b, state_b) = load_latest(a / "checkpoints"), load_latest(b / "checkpoints")
    assert step_a == step_b
    flat_a, flat_b = flatten(state_a), flatten(state_b)
    assert flat_a.keys() == flat_b.keys()
    assert any(isinstance(v, torch.Tensor) and v.ndim for v in flat_a.values())
    for name, value in flat_a.items():
        if name == "/train_s":
            continue
        same = torch.equal(value, flat_b[name]) if isinstance(value, torch.Tensor) else value == flat_b[name]
        assert same, name
    assert rows_of(a) == rows_of(b)
    assert len(rows_of(a)) > 1


def weights_of(directory: Path) -> np.ndarray:
    module = load_latest(directory / "checkpoints")[1]["module"]
    return np.concatenate([v.double().flatten().numpy() for v in module.values()])
