"""How long runs and the stages that they share are likely to take, known before any of it is begun."""

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import torch

from mvar import cost
from mvar.config import RunConfig, RuntimeConfig
from mvar.errors import UserError
from mvar.evaluation.extractors.classifier import Classifier
from mvar.runs.experiment import training_flops
from mvar.runs.plan import Task, run_flops
from mvar.runs.stage_costs import image_flops
from mvar.runs.store import Store
from mvar.tokenizer.model import Tokenizer
from mvar.training.distributed import resolve_device
from mvar.training.numerics import precise
from mvar.transformer import ScaleTransformer

PROBE_FLOPS = 5e10  # a training step beyond this is not probed: on one core it would take seconds
NUM_IMAGES = 8  # of a probe of a network


@dataclass(frozen=True)
class Estimate:
    """How long one run is likely to take on one worker, and how that is known."""

    seconds: float
    source: str  # "finished runs", "timed steps" or "GEMM rate (lower bound)"


class Clock:
    """Estimates times: from finished runs of the same model, else from timed steps, else from the GEMM rate.

    Args:
        store: where finished runs are looked for.
        threads: of torch in a worker.
    """

    def __init__(self, store: Store, threads: int) -> None:
        self._threads = threads
        self._finished = {}
        for run in store.runs():
            with suppress(UserError, KeyError, TypeError):  # damaged: others tell
                for record in run.evaluations().values():
                    if record["timing"]["train_s"] > 0:
                        rate = record["cost"]["train_flops"] / record["timing"]["train_s"]
                        self._finished[run.stored().config.model] = rate
        self._rates: dict[object, tuple[float, str]] = {}

    def estimate(self, config: RunConfig, flops: float | None = None) -> Estimate:
        """The time of one run, or of `flops` of its work; shared stages aside."""
        if config.model not in self._rates:
            self._rates[config.model] = self._rate(config)
        rate, source = self._rates[config.model]
        return Estimate((run_flops(config) if flops is None else flops) / rate, source)

    def estimate_stage(self, task: Task) -> float:
        """Seconds of a shared stage, at the rate of its network: timed on a few images, else as of large products."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with precise(task.config.runtime):
                return task.flops / network_rate(task.config, task.kind == "extractor") if task.flops else 0.0
        finally:
            torch.set_num_threads(before)

    def _rate(self, config: RunConfig) -> tuple[float, str]:
        if config.model in self._finished:
            return self._finished[config.model], "finished runs"
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            if training_flops(config) / max(config.train.steps, 1) <= PROBE_FLOPS:
                with precise(config.runtime):
                    return step_rate(config), "timed steps"
            return gemm_rate_of(config, config.train.precision), "GEMM rate (lower bound)"
        finally:
            torch.set_num_threads(before)


def step_rate(config: RunConfig, repeats: int = 2) -> float:
    """FLOP/s of a training step (forward and backward, random tokens) of a run's model, in fp32."""
    space, split = config.token_space, config.runtime
    whole = config.train.batch_size // split.accumulate
    batch = split.images_at_once or whole
    device = resolve_device(config.runtime)
    with torch.random.fork_rng(devices=[]):
        model = ScaleTransformer(config.model, space, config.runtime).to(device)
        inputs = torch.randn(batch, space.schedule.num_tokens - space.schedule.lengths[0], space.code_channels)
    inputs, labels = inputs.to(device), torch.zeros(batch, dtype=torch.int64, device=device)

    def step() -> float:
        began = time.perf_counter()
        model(labels, inputs)[0].square().mean().backward()
        _wait(device)
        return time.perf_counter() - began

    step()
    return cost.train_flops(config.model, space, batch) / min(step() for _ in range(repeats))


def network_rate(config: RunConfig, of_extractor: bool) -> float:
    """FLOP/s of a training step of the classifier, or of the tokenizer; of large products where that takes seconds."""
    device, data = resolve_device(config.runtime), config.data
    flops = 3.0 * NUM_IMAGES * image_flops(config, of_extractor)
    if flops > PROBE_FLOPS:
        return gemm_rate_of(config, config.tokenizer.train.precision)
    with torch.random.fork_rng(devices=[]):
        classifier = Classifier(data.channels, data.num_classes)
        network = classifier if of_extractor else Tokenizer(config.tokenizer, data.channels)
        images = torch.randn(NUM_IMAGES, data.channels, data.image_size, data.image_size)
    network, images = network.to(device), images.to(device)

    def step() -> float:
        began = time.perf_counter()
        found = network(images)
        found[1 if of_extractor else 0].square().mean().backward()  # logits, or a reconstruction
        _wait(device)
        return time.perf_counter() - began

    step()
    return flops / step()


def gemm_rate_of(config: RunConfig, precision: str) -> float:
    """`gemm_rate` on a run's device, by its settings."""
    return gemm_rate(resolve_device(config.runtime), precision, config.runtime.tf32)


@cache
def gemm_rate(device: str, precision: str, tf32: bool, budget_s: float = 0.3) -> float:
    """FLOP/s of large matrix products on a device, in fp32 by `runtime.tf32`: what no model can exceed there."""
    with precise(RuntimeConfig(tf32=tf32)):
        return _gemm_rate(device, precision, budget_s)


def _gemm_rate(device: str, precision: str, budget_s: float) -> float:
    size = 1024 if device == "cpu" else 8192
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    torch.matmul(a, b)
    _wait(device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < budget_s:
        torch.matmul(a, b)
        _wait(device)
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - began)


def _wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
