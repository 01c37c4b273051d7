"""Two processes: what they sum, share out and gather is right, and a training step whose weights they share.

By NCCL where there are two GPUs, else by gloo.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.gpu import replay, training
from benchmarks.gpu.settings import Settings, wait
from mvar.config import override
from mvar.files import write_json
from mvar.training.loop import fit
from mvar.training.numerics import prepare_process
from mvar.training.profiling import random_objective

WORLD = 2
SHARDED_ERROR = 1e-2  # of what two steps move weights by; a wrong gradient moves them as far


def rows(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row of their sums, and rows of sharded steps: on a machine with a single GPU what the plan says alone."""
    gpus = torch.cuda.device_count()
    if gpus == 1:
        yield {"said": "one GPU; NCCL needs two"}
        yield from training.not_sharded(settings)
        return
    backend, size = ("nccl", 1 << 26) if gpus else ("gloo", 1 << 12)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, args=(folder, backend, size, settings), nprocs=WORLD)
        yield from json.loads((Path(folder) / "found.json").read_text())


def _process(rank: int, folder: str, backend: str, size: int, settings: Settings) -> None:
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(1)
    prepare_process(settings.config("VAR").runtime)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group(backend, store=store, rank=rank, world_size=WORLD)
    try:
        sums = _sums(rank, size, device, settings.repeats) | _gradients(rank, device)
        sums |= _trained(rank, Path(folder), device.type) | _replayed()
        steps = list(training.sharded(settings, WORLD))
    finally:
        dist.destroy_process_group()
    if not rank:
        holds = sums["sums_are_right"] and sums["gradient_error"] < 1e-5 and sums["sharded_error"] < SHARDED_ERROR
        holds = holds and not sums["tokens_that_differ"]
        first = {"backend": backend, "processes": WORLD, **sums, "holds": holds}
        write_json(Path(folder) / "found.json", [first, *steps])


def _sums(rank: int, size: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """A sum over both, shared out and gathered again; and what the sum moves, GB a second."""
    values = torch.arange(size, device=device, dtype=torch.float32) % 7 * (rank + 1)
    wanted = torch.arange(size, device=device, dtype=torch.float32) % 7 * 3
    total = values.clone()
    dist.all_reduce(total)
    part, whole = torch.empty(size // WORLD, device=device), torch.empty(size, device=device)
    dist.reduce_scatter_tensor(part, values) if device.type == "cuda" else part.copy_(total.chunk(WORLD)[rank])
    dist.all_gather_into_tensor(whole, part)
    began = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(values)
    wait(device)
    rate = values.numel() * values.itemsize * repeats / (time.perf_counter() - began) / 1e9
    right = torch.equal(total, wanted) and torch.equal(whole, wanted)
    return {"sums_are_right": right, "all_reduce_gb_per_s": rate}


def _trained(rank: int, folder: Path, device: str) -> dict[str, Any]:
    """Two steps of the training loop itself, of a tiny M-VAR that both share (FSDP2), saved after the first and gone on
    with from there, against whole weights (DDP): the largest difference of a weight, of the largest move."""
    at = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD, "GROUP_RANK": 0}
    os.environ |= {name: str(value) for name, value in at.items()} | {"TORCHELASTIC_RUN_ID": "gpu"}
    tiny = Settings(tiny=True, precision="fp32").config("M-VAR")
    found = [_values(random_objective(tiny, 2)[0])]
    for strategy, legs in (("ddp", (2,)), ("fsdp", (1, 2))):
        fields = {"runtime.strategy": strategy, "runtime.device": device, "runtime.log_every": 1, "train.base_lr": 0.1}
        config = override(tiny, fields | {"runtime.micro_batch": None, "runtime.checkpoint_activations": "full"})
        for steps in legs:  # the first of two ends by being asked to stop
            _, objective = random_objective(config, 2)
            asked = iter([False] * steps + [True])
            fit(objective, objective.train, folder / strategy, config.runtime, seed=0, should_stop=partial(next, asked))
        found.append(_values(objective.module))
    begun, whole, shared = found
    return {"sharded_error": ((shared - whole).abs().max() / (whole - begun).abs().max()).item()}


def _values(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().cpu()


def _replayed() -> dict[str, Any]:
    """Steps of a tiny M-VAR that are recorded, and replayed, while NCCL's own threads ask the device how far it is."""
    tiny = Settings(tiny=True, precision="fp32")
    parts = replay.models(tiny, "M-VAR")
    wrong = replay.tokens_that_differ(*parts, tiny.config("M-VAR").sample, 2, replay.graphs(tiny))
    return {"tokens_that_differ": wrong}


def _gradients(rank: int, device: torch.device) -> dict[str, Any]:
    """Gradients of a batch that two processes share (DDP), against those of one that has it all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).to(device)
    x = torch.randn(8, 16, device=device)
    wanted = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    shared = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    shared(x.chunk(WORLD)[rank]).square().mean().backward()
    pairs = zip((p.grad for p in model.parameters()), wanted, strict=True)
    return {"gradient_error": max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs if a is not None)}
