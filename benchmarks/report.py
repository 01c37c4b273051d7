"""Speed of `mvar report` over many run directories, the first time and again.

Run: `python -m benchmarks.report --results RESULTS`, with finished runs of a sweep or more in RESULTS (`make demo`).

The directories are synthetic: the real runs of RESULTS copied under other seeds until there are as many as asked for,
their metrics shifted by a little noise, so that every file is what a run writes and the report finds seeds to average.
Weights, samples, curves and attention are the real ones (linked, not copied, where the disk allows it).

- cold: no cache, nothing drawn before.
- again: nothing has changed.
- one more: the evaluation of one run has changed since.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.machine import begin, describe_machine
from mvar.config import RunConfig, override
from mvar.errors import UserError
from mvar.files import write_json
from mvar.place import results_directory
from mvar.runs.states import DONE
from mvar.runs.store import Store

GOAL_S = 30.0


@dataclass
class Settings:
    """What is measured."""

    results: Path = field(default_factory=results_directory)  # real runs
    runs: int = 1000
    out: Path = Path("benchmarks/results/report.json")


def multiply(source: Store, target: Store, num_runs: int) -> int:
    """Fill `target` with copies of `source`'s finished runs under other seeds; returns how many there are."""
    real = [run for run in source.runs() if run.state() == DONE]
    if not real:
        raise UserError(f"results: {source.root} holds no finished run; allowed: a directory that `make demo` has made")
    shutil.copytree(source.root / "stages", target.root / "stages", copy_function=_link)
    shutil.copytree(source.root / "sweeps", target.root / "sweeps")
    rng = np.random.default_rng(0)
    renamed: dict[str, list[str]] = {}
    jobs = _jobs([(run.name, run.config()) for run in real], num_runs)
    for name, config in jobs:
        renamed.setdefault(name, []).append(config.run_id)
        if config.run_id == name and target.run(name).path.exists():
            continue
        directory = target.run(config.run_id).path
        shutil.copytree(source.run(name).path, directory, copy_function=_link)
        _replace(directory / "config.json", config.model_dump(mode="json"))
        document = json.loads((directory / "eval.json").read_text())
        for record in document["evaluations"].values():
            for key, value in record["metrics"].items():
                record["metrics"][key] = value * float(np.exp(rng.normal(0, 0.02)))
        _replace(directory / "eval.json", document)
    for path in (target.root / "sweeps").glob("*.json"):
        manifest = json.loads(path.read_text())
        for cell in manifest["cells"]:
            cell["run_ids"] = sorted({new for old in cell["run_ids"] for new in renamed.get(old, [])})
        write_json(path, manifest)
    return len(target.runs())


def _jobs(real: list[tuple[str, RunConfig]], num_runs: int) -> Iterator[tuple[str, RunConfig]]:
    yield from real
    count, seed = len(real), 1000
    firsts = [(name, config) for name, config in real if config.seed == real[0][1].seed]
    while True:
        for name, config in firsts:
            if count >= num_runs:
                return
            yield name, override(config, {"seed": seed})
            count += 1
        seed += 1


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _replace(path: Path, value: object) -> None:
    path.unlink()  # a link: the real run's file stays as it is
    write_json(path, value)


def timed(results: Path) -> float:
    """Seconds of one report."""
    from mvar.analysis.report import write_report

    start = time.perf_counter()
    write_report(results)
    return time.perf_counter() - start


def main(settings: Settings) -> None:
    """Measure, print and keep."""
    import mvar.analysis.report  # noqa: F401  importing torch and pandas is no part of it

    with tempfile.TemporaryDirectory(dir=settings.results) as folder:
        store = Store(Path(folder))
        count = multiply(Store(settings.results), store, settings.runs)
        seconds = {"cold": timed(store.root), "again": timed(store.root)}
        changed = store.runs()[0].path / "eval.json"
        _replace(changed, json.loads(changed.read_text()))
        seconds["one more"] = timed(store.root)
    for name, value in seconds.items():
        print(f"{count} run directories, {name}: {value:.1f} s (goal: {GOAL_S:.0f})")
    write_json(settings.out, {"machine": describe_machine(), "runs": count, "goal_s": GOAL_S, "seconds": seconds})


if __name__ == "__main__":
    begin(main, Settings, __doc__)
