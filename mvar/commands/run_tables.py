"""What `mvar run --dry-run` and `mvar status` print."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mvar.config import RunConfig
from mvar.errors import say
from mvar.escaping import rich_text
from mvar.runs.derived import last_row
from mvar.runs.display import duration
from mvar.runs.request import Request, unique, with_seeds
from mvar.runs.states import DONE, FAILED, INTERRUPTED, MISSING, QUEUED, RUNNING, STOPPED, Seen
from mvar.runs.store import Directory, Store

STYLES = {DONE: "green", RUNNING: "cyan", QUEUED: "blue", FAILED: "red", STOPPED: "yellow"}
STYLES |= {INTERRUPTED: "yellow", MISSING: "dim"}


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=200)  # a file is not 80 columns wide


def print_plan(requests: Sequence[Request], store: Store, num_workers: int | None) -> None:
    """The runs of some sweeps: pattern, steps, parameters, training FLOPs, estimated time; nothing is made.

    A run is trained once, however many evaluations of it are asked for.
    """
    from mvar.cost import num_params, train_flops
    from mvar.runs.measured import to_measure
    from mvar.runs.plan import Clock, sampling_flops
    from mvar.runs.runner import worker_places

    cells = _labels(requests)
    configs = unique(store.as_stored(config) for request in requests for config in request.configs())
    places = worker_places(configs[0].runtime, num_workers)
    clock = Clock(store, int(places[0]["OMP_NUM_THREADS"]))
    table = Table("run", "cells", "pattern", "state")
    for column in ("steps", "parameters", "training FLOPs", "estimated time"):
        table.add_column(column, justify="right")
    left_s, total_flops, sources = 0.0, 0, set()
    evaluations: dict[str, list[RunConfig]] = {}
    for config in configs:
        evaluations.setdefault(config.key, []).append(config)
    for config, *others in evaluations.values():
        flops = train_flops(config.model, config.token_space, config.train.steps * config.train.batch_size)
        total_flops += flops
        left = [one for one in (config, *others) if not store.is_done(one)]
        lacks = any(to_measure(store.run_of(one), one) for one in (config, *others) if one not in left)
        state, time = "to do" if left else "metrics" if lacks else "done", ""
        if left:
            training = 0 if store.run_of(config).weights.is_file() else flops
            estimate = clock.estimate(config, float(training + sum(map(sampling_flops, left))))
            left_s += estimate.seconds
            sources.add(estimate.source)
            time = duration(estimate.seconds)
        name = store.run_of(config).name
        row = (name, "; ".join(cells[config.key]), config.model.pattern, state, config.train.steps)
        table.add_row(*map(rich_text, row), f"{num_params(config.model, config.token_space):,}", f"{flops:.3g}", time)
    console = _console()
    console.print(table)
    more = f", {len(configs)} evaluations" if len(configs) > len(evaluations) else ""
    say(f"{len(evaluations)} runs{more}, {total_flops:.3g} training FLOPs")
    if left_s:
        say(
            f"to do: about {duration(left_s / len(places))} on {len(places)} worker(s), shared stages (tokenizer, "
            f"tokens, extractor) not counted; time from {', '.join(sorted(sources))}"
        )


def _labels(requests: Sequence[Request]) -> dict[str, list[str]]:
    """The cells that each run fills, by the run's key."""
    labels: dict[str, list[str]] = {}
    for request in requests:
        for cell in request.cells():
            for config in with_seeds(cell.config, request.seeds):
                labels.setdefault(config.key, []).append(f"{request.sweep.artefact}: {cell.label}")
    return labels


def print_status(store: Store, names: Iterable[str], look: Callable[[Directory], Seen]) -> None:
    """Every stage, and the runs of the given names, as `look` sees them."""
    table = Table("stage or run", "state", "at", "loss", "time left", "job", "updated", "why")
    counts: Counter[str] = Counter()
    for stage in store.stages():
        _add(table, stage, look(stage), {})
    for name in names:
        run = store.run(name)
        seen = look(run)
        counts[seen.state] += 1
        _add(table, run, seen, last_row(run.metrics) if seen.status else {})
    _console().print(table)
    say(", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no runs yet")


def _add(table: Table, directory: Directory, seen: Seen, row: dict[str, Any]) -> None:
    status = seen.status or {}
    at, left = str(status.get("stage", "")), ""
    step, steps = status.get("step", 0), status.get("steps", 0)
    if steps and seen.state != DONE:
        at += f" {step}/{steps}"
        if seen.state == RUNNING and row.get("step"):
            left = duration(row["train/elapsed_s"] / row["step"] * (steps - step))
    loss = row.get("train/loss")
    where = f"{seen.job} on {seen.node}" if seen.node else seen.job
    shown = "" if loss is None else f"{loss:.3f}"
    state = rich_text(seen.state, STYLES.get(seen.state, ""))
    told = (at, shown, left, where, status.get("updated", ""), seen.reason)
    table.add_row(rich_text(directory.name), state, *map(rich_text, told))
