"""What a list of runs amounts to: the tasks in their order, their FLOPs, the time they are likely to take."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from mvar import cost
from mvar.config import DataConfig, RunConfig, TokenizerConfig
from mvar.errors import UserError
from mvar.runs.experiment import training_flops
from mvar.runs.measured import to_measure
from mvar.runs.states import DONE
from mvar.runs.store import RUN, RunDirectory, Store
from mvar.sampling.methods import is_guided
from mvar.tokenizer.model import Tokenizer
from mvar.training.distributed import resolve_device
from mvar.transformer import ScaleTransformer

METRICS = "metrics"  # those that the evaluation of a finished run lacks: nothing is trained or drawn
OF_A_RUN = (RUN, METRICS)


@dataclass(frozen=True)
class Task:
    """One piece of work for one worker: a shared stage or a run."""

    kind: str  # tokenizer, tokens, extractor, floors, metrics or run
    config: RunConfig
    key: str  # what makes two tasks the same; a run's id, a stage's id
    flops: float  # analytic where there is a formula (the generator), counted on the model else
    needs: tuple[str, ...] = field(default=())
    run: str = ""  # path of the run's directory

    @property
    def name(self) -> str:
        """For people: the name of the run's directory, or the stage and its id."""
        return (Path(self.run).name or self.config.run_id) if self.kind in OF_A_RUN else self.key


def run_flops(config: RunConfig) -> float:
    """Training and sampling of one run."""
    return float(training_flops(config) + sampling_flops(config))


def sampling_flops(config: RunConfig) -> int:
    """What drawing the images of one evaluation takes."""
    space = config.token_space
    an_image = cost.sample_flops(config.model, space, guided=is_guided(config.sample, space.schedule.num_scales))
    return an_image * config.sample.candidates * config.evaluation.num_images


def tokenizer_flops(config: RunConfig) -> float:
    """Training of the tokenizer: FLOPs of one image counted by torch on shapes alone, three passes a step."""
    # pydantic gives frozen models a hash, its stub knows that only of models with frozen=True in the class line.
    return _tokenizer_flops(config.tokenizer, config.data)  # pyright: ignore[reportArgumentType]  see above


@cache  # by what it depends on: the runs of a sweep share it
def _tokenizer_flops(tokenizer_config: TokenizerConfig, data: DataConfig) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # as slow to import as the rest together

    if tokenizer_config.checkpoint:
        return 0.0
    with torch.device("meta"):
        tokenizer = Tokenizer(tokenizer_config, data.channels)
        images = torch.empty(1, data.channels, data.image_size, data.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        latent = tokenizer.features(images)
        tokenizer.decode(latent)
    settings = tokenizer_config.train
    return 3.0 * counter.get_total_flops() * settings.steps * settings.batch_size


def tasks_of(configs: Iterable[RunConfig], store: Store, directory: RunDirectory | None = None) -> list[Task]:
    """Everything that is not done yet, each stage once: what must come first first, then longest first.

    Of several evaluations of a run the first one counts its training, so that it comes before the others.

    Args:
        configs: the runs.
        store: where they are kept.
        directory: that all configs are evaluations of; None: each run's own.
    """
    tasks: dict[str, Task] = {}
    training: set[Path] = set()  # runs whose training another task of the list counts
    for config in configs:
        run = directory or store.run_of(config)
        key = f"{run.name}/{config.evaluation_id}"
        if run.is_done(config.evaluation_id):
            if to_measure(run, config):
                tasks[key] = Task(METRICS, config, key, 0.0, (), str(run.path.absolute()))
            continue
        stages = _stages_of(config)
        for task in stages:
            tasks.setdefault(task.key, task)
        needs = tuple(task.key for task in stages if task.kind != "floors")
        is_trained = run.weights.is_file() or run.path in training
        training.add(run.path)
        flops = float(sampling_flops(config)) if is_trained else run_flops(config)
        tasks[key] = Task(RUN, config, key, flops, needs, str(run.path.absolute()))
    tasks = {key: task for key, task in tasks.items() if not _stage_is_done(task, store)}
    order = {kind: number for number, kind in enumerate(("tokenizer", "extractor", "tokens", "floors", METRICS, RUN))}
    return sorted(tasks.values(), key=lambda task: (order[task.kind], -task.flops, task.name))


def _stages_of(config: RunConfig) -> list[Task]:
    tokenizer, extractor = f"tokenizer-{config.tokenizer_id}", f"extractor-{config.extractor_id}"
    tokens = f"tokens-{config.tokens_id}"
    return [
        Task("tokenizer", config, tokenizer, tokenizer_flops(config)),
        Task("extractor", config, extractor, 0.0),
        Task("tokens", config, tokens, 0.0, (tokenizer,)),
        Task("floors", config, f"floors-{config.floors_id}", 0.0, (tokenizer, extractor)),
    ]


def _stage_is_done(task: Task, store: Store) -> bool:
    if task.kind in OF_A_RUN:
        return False
    if task.kind == "floors":
        return store.floors(task.config) is not None
    return store.stage(task.kind, task.key.partition("-")[2]).state() == DONE


# Time ---------------------------------------------------------------------------------------------------------------

PROBE_FLOPS = 5e10  # a training step beyond this is not probed: on one core it would take seconds


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

    def _rate(self, config: RunConfig) -> tuple[float, str]:
        if config.model in self._finished:
            return self._finished[config.model], "finished runs"
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            if training_flops(config) / max(config.train.steps, 1) <= PROBE_FLOPS:
                return step_rate(config), "timed steps"
            return gemm_rate(resolve_device(config.runtime), config.train.precision), "GEMM rate (lower bound)"
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


@cache
def gemm_rate(device: str, precision: str, budget_s: float = 0.3) -> float:
    """FLOP/s of large matrix products on a device: what no model can exceed there."""
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
