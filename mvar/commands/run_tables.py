"""What `mvar plan` and `--dry-run` say: runs, their cost, and what is left to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType

from mvar.commands.console import wide_console
from mvar.commands.narrow import Narrow
from mvar.config import RunConfig
from mvar.errors import counted, say
from mvar.runs.display import duration
from mvar.runs.request import Request, unique, with_seeds
from mvar.runs.store import Store

NARROW = Narrow(
    "run",
    dispensable=("pattern", "training FLOPs", "steps", "parameters", "state", "cells"),  # the name has the pattern
    breakable={"cells": 16, "pattern": 10, "state": 5},
)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan, as `mvar plan --json` has it."""

    name: str
    cells: tuple[str, ...]  # of the tables that it fills
    pattern: str
    state: str  # to do, metrics (all is there but some metrics) or done
    steps: int
    parameters: int
    training_flops: int
    evaluations: int
    estimated_s: float | None  # on one worker; None: nothing is left


@dataclass(frozen=True)
class Planned:
    """The runs of some sweeps, and what they take in all."""

    runs: tuple[PlannedRun, ...]
    stages: Mapping[str, float]  # seconds of each shared stage that is left, by its name
    workers: int
    time_from: tuple[str, ...]  # what the estimates rest on

    @property
    def left_s(self) -> float:
        """Seconds of all runs that are left, over all workers."""
        return sum(run.estimated_s or 0.0 for run in self.runs) / self.workers

    @property
    def stages_s(self) -> float:
        """Seconds of the shared stages: over all workers, and no less than the longest way through them."""
        order = ("tokenizer", "tokens", "floors")
        ways = [sum(seconds for name, seconds in self.stages.items() if name.startswith(order)), *self.stages.values()]
        return max(sum(self.stages.values()) / self.workers, *ways)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        runs = [vars(run) for run in self.runs]
        flops = sum(run.training_flops for run in self.runs)
        shared = {"shared_stages": dict(self.stages), "shared_stages_s": self.stages_s}
        told = {"workers": self.workers, "estimated_s": self.left_s + self.stages_s, "time_from": self.time_from}
        return {"runs": runs, "training_flops": flops, **told, **shared}


def plan_of(requests: Sequence[Request], store: Store, num_workers: int | None) -> Planned:
    """What the runs of some sweeps are and take; one is trained once, however many evaluations of it are asked for."""
    from mvar.cost import num_params, train_flops
    from mvar.runs.clock import Clock
    from mvar.runs.measured import to_measure
    from mvar.runs.plan import OF_A_RUN, sampling_flops, tasks_of
    from mvar.runs.runner import worker_places

    cells = _labels(requests)
    configs = unique(store.as_stored(config) for request in requests for config in request.configs())
    places = worker_places(configs[0].runtime, num_workers)
    clock = Clock(store, int(places[0]["OMP_NUM_THREADS"]))
    evaluations: dict[str, list[RunConfig]] = {}
    for config in configs:
        evaluations.setdefault(config.key, []).append(config)
    runs, sources = [], set()
    for config, *others in evaluations.values():
        flops = train_flops(config.model, config.token_space, config.train.steps * config.train.batch_size)
        left = [one for one in (config, *others) if not store.is_done(one)]
        lacks = any(to_measure(store.run_of(one), one) for one in (config, *others) if one not in left)
        seconds = None
        if left:
            training = 0 if store.run_of(config).weights.is_file() else flops
            estimate = clock.estimate(config, float(training + sum(map(sampling_flops, left))))
            seconds = estimate.seconds
            sources.add(estimate.source)
        runs.append(
            PlannedRun(
                name=store.run_of(config).name,
                cells=tuple(cells[config.key]),
                pattern=config.model.pattern,
                state="to do" if left else "metrics" if lacks else "done",
                steps=config.train.steps,
                parameters=num_params(config.model, config.token_space),
                training_flops=flops,
                evaluations=1 + len(others),
                estimated_s=seconds,
            )
        )
    shared = [task for task in tasks_of(configs, store) if task.kind not in OF_A_RUN]
    stages = {task.key: clock.estimate_stage(task) for task in shared}
    return Planned(tuple(runs), stages, len(places), tuple(sorted(sources)))


def print_plan(requests: Sequence[Request], store: Store, num_workers: int | None) -> None:
    """The runs of some sweeps: pattern, steps, parameters, training FLOPs, estimated time; nothing is made."""
    plan = plan_of(requests, store, num_workers)
    console = wide_console(400)
    console.print(plan_table(plan.runs, console))
    evaluations = sum(run.evaluations for run in plan.runs)
    more = f", {evaluations} evaluations" if evaluations > len(plan.runs) else ""
    say(f"{counted(len(plan.runs), 'run')}{more}, {sum(run.training_flops for run in plan.runs):.3g} training FLOPs")
    if plan.left_s:
        kinds = dict.fromkeys(name.partition("-")[0] for name in plan.stages)
        shared = f" and {duration(plan.stages_s)} of shared stages ({', '.join(kinds)})" if kinds else ""
        say(
            f"to do: about {duration(plan.left_s)} on {plan.workers} worker(s){shared}; "
            f"time from {', '.join(plan.time_from)}"
        )


def plan_table(runs: Sequence[PlannedRun], console: Console) -> RenderableType:
    """The table, cut to what tells runs apart where it does not fit the console."""
    columns: dict[str, Sequence[str]] = {
        "cells": ["; ".join(run.cells) for run in runs],
        "pattern": [run.pattern for run in runs],
        "state": [run.state for run in runs],
        "steps": [str(run.steps) for run in runs],
        "parameters": [f"{run.parameters:,}" for run in runs],
        "training FLOPs": [f"{run.training_flops:.3g}" for run in runs],
        "estimated time": ["" if run.estimated_s is None else duration(run.estimated_s) for run in runs],
    }
    return NARROW.table([run.name for run in runs], columns, console)


def _labels(requests: Sequence[Request]) -> dict[str, list[str]]:
    """The cells that each run fills, by the run's key."""
    labels: dict[str, list[str]] = {}
    for request in requests:
        for cell in request.cells():
            for config in with_seeds(cell.config, request.seeds):
                labels.setdefault(config.key, []).append(f"{request.sweep.artefact}: {cell.label}")
    return labels
