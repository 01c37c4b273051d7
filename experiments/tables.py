"""What `mvar run --dry-run` and `mvar status` print."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.cells import Request, unique, with_seeds
from experiments.display import duration
from experiments.store import DONE, RUNNING, Directory, RunDirectory, Store

MISSING, INTERRUPTED = "missing", "interrupted"
STYLES = {DONE: "green", RUNNING: "cyan", "failed": "red", "stopped": "yellow", INTERRUPTED: "yellow", MISSING: "dim"}


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=200)  # a file is not 80 columns wide


def print_plan(requests: Sequence[Request], store: Store, num_workers: int | None) -> None:
    """The runs of some sweeps: pattern, steps, parameters, training FLOPs, estimated time; nothing is made."""
    from experiments.plan import Clock
    from experiments.runner import worker_places
    from mvar.cost import num_params, train_flops

    cells = _labels(requests)
    configs = unique(config for request in requests for config in request.configs())
    places = worker_places(configs[0].runtime, num_workers)
    clock = Clock(store, int(places[0]["OMP_NUM_THREADS"]))
    table = Table("run", "cells", "pattern", "state")
    for column in ("steps", "parameters", "training FLOPs", "estimated time"):
        table.add_column(column, justify="right")
    left_s, total_flops, sources = 0.0, 0, set()
    for config in configs:
        flops = train_flops(config.model, config.token_space, config.train.steps * config.train.batch_size)
        total_flops += flops
        state, time = "done" if store.is_done(config) else "to do", ""
        if state != "done":
            estimate = clock.estimate(config)
            left_s += estimate.seconds
            sources.add(estimate.source)
            time = duration(estimate.seconds)
        row = (config.run_id, "; ".join(cells[config.run_id]), config.model.pattern, state, str(config.train.steps))
        table.add_row(*row, f"{num_params(config.model, config.token_space):,}", f"{flops:.3g}", time)
    console = _console()
    console.print(table)
    print(f"{len(configs)} runs, {total_flops:.3g} training FLOPs")
    if left_s:
        print(
            f"to do: about {duration(left_s / len(places))} on {len(places)} worker(s), shared stages (tokenizer, "
            f"tokens, extractor) not counted; time from {', '.join(sorted(sources))}"
        )


def _labels(requests: Sequence[Request]) -> dict[str, list[str]]:
    """The cells that each run fills, by run id."""
    labels: dict[str, list[str]] = {}
    for request in requests:
        for cell in request.cells():
            for config in with_seeds(cell.config, request.seeds):
                labels.setdefault(config.run_id, []).append(f"{request.sweep.artefact}: {cell.label}")
    return labels


def print_status(results: Path) -> None:
    """Every stage and run that was begun or asked for."""
    store = Store(results)
    table = Table("stage or run", "state", "at", "loss", "updated", "why")
    counts: Counter[str] = Counter()
    for stage in store.stages():
        _add(table, stage, "")
    asked = {run_id for manifest in store.manifests() for cell in manifest["cells"] for run_id in cell["run_ids"]}
    for name in sorted(asked | {run.name for run in store.runs()}):
        run = store.run(name)
        counts[_add(table, run, _last_loss(run))] += 1
    _console().print(table)
    print(", ".join(f"{count} {state}" for state, count in counts.most_common()) or "no runs yet")


def _add(table: Table, directory: Directory, loss: str) -> str:
    status: dict[str, Any] = directory.status() or {"state": MISSING}
    state = status["state"]
    if state == RUNNING and not directory.is_locked():
        state = INTERRUPTED  # its process was killed before it could say so
    at = status.get("stage", "")
    if status.get("steps") and state != DONE:
        at += f" {status['step']}/{status['steps']}"
    name = f"[{STYLES[state]}]{state}[/]"
    table.add_row(directory.name, name, at, loss, status.get("updated", ""), status.get("reason") or "")
    return state


def _last_loss(run: RunDirectory) -> str:
    try:
        lines = run.metrics.read_text().splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            return f"{json.loads(line)['train/loss']:.3f}"
        except (ValueError, KeyError):
            continue  # a line that is just being written
    return ""
