"""What a list of runs amounts to: the tasks in their order, and their FLOPs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mvar import cost
from mvar.config import RunConfig
from mvar.runs.experiment import training_flops
from mvar.runs.measured import to_measure
from mvar.runs.stage_costs import stage_flops
from mvar.runs.states import DONE
from mvar.runs.store import RUN, RunDirectory, Store
from mvar.sampling.methods import is_guided

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
        stages = _stages_of(config, store)
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


def _stages_of(config: RunConfig, store: Store) -> list[Task]:
    tokenizer, extractor = f"tokenizer-{config.tokenizer_id}", f"extractor-{config.extractor_id}"
    keys = {
        "tokenizer": (tokenizer, ()),
        "extractor": (extractor, ()),
        "tokens": (f"tokens-{config.tokens_id}", (tokenizer,)),
        "floors": (f"floors-{config.floors_id}", (tokenizer, extractor)),
    }
    return [Task(kind, config, key, stage_flops(kind, config, store), needs) for kind, (key, needs) in keys.items()]


def _stage_is_done(task: Task, store: Store) -> bool:
    if task.kind in OF_A_RUN:
        return False
    if task.kind == "floors":
        return store.floors(task.config) is not None
    return store.stage(task.kind, task.key.partition("-")[2]).state() == DONE
