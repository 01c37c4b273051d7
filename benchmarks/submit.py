"""What a grid of 1,000 runs costs to submit, to look at and to cancel: seconds and calls of SLURM's commands.

    python -m benchmarks.submit [--cells 1000]

Boots the tests' own SLURM (as root, with slurm-wlm and munge installed). The runs are held, so that none begins: this
measures the launcher, not the training.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from mvar.errors import USER_ERROR, UserError, complain

ROOT = Path(__file__).parents[1]
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sacct")
DAEMONS = ("slurmctld", "slurmd", "munged")
LAYERS_CELLS = 5  # of the sweep `layers` with the smoke preset: the grid is that, times seeds


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings; mistakes, and a machine that cannot run SLURM, are a `UserError`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000, help="a multiple of 5: the cells of a sweep, times seeds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/submit.json")
    settings = parser.parse_args(arguments)
    if settings.cells < LAYERS_CELLS or settings.cells % LAYERS_CELLS:
        raise UserError(f"cells: {settings.cells}; allowed: a multiple of {LAYERS_CELLS}, e.g. 1000")
    if absent := [name for name in (*COMMANDS, *DAEMONS) if not shutil.which(name)]:
        raise UserError(f"SLURM: {', '.join(absent)} not found; allowed: apt-get install slurm-wlm munge")
    if os.getuid() != 0:
        raise UserError("SLURM: its daemons are started as root; allowed: the same command as root")
    return settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; write and print one JSON object."""
    settings = parse(arguments)
    cells = settings.cells
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as name:
        folder = Path(name)
        log = folder / "calls"
        log.touch()
        (folder / "bin").mkdir()
        for command in COMMANDS:
            wrapper = folder / "bin" / command
            wrapper.write_text(f'#!/bin/sh\necho {command} >> {log}\nexec {shutil.which(command)} "$@"\n')
            wrapper.chmod(0o755)
        script = [sys.executable, str(ROOT / "tests/cluster/slurm_cluster.py"), str(folder / "c")]
        holder = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "ready\n"
            path = f"{folder}/bin:{os.environ['PATH']}"
            environment = os.environ | {"SLURM_CONF": f"{folder}/c/slurm.conf", "PATH": path}
            rows = measure(folder / "results", cells, environment, log)
        finally:
            holder.stdin.close()
            holder.wait(30)
    text = json.dumps({"machine": describe_machine(), "cells": cells, "commands": rows}, indent=1)
    settings.out.write_text(text + "\n")
    print(text)


def measure(results: Path, cells: int, environment: dict[str, str], log: Path) -> list[dict]:
    """Seconds (the start of Python included) and calls of each command."""
    grid = ["submit", "layers", "--preset", "smoke", "--seeds", str(cells // LAYERS_CELLS), "--cluster", "slurm"]
    grid += ["--cluster-set", "sbatch.hold=true"]
    steps = {"submit": grid, "submit again": grid, "status": ["status"], "cancel": ["cancel", "--all"]}
    rows = []
    for name, command in steps.items():
        before = len(log.read_text().split())
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "mvar.cli", *command, "--results", str(results)],
            env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        calls = Counter(log.read_text().split()[before:])
        rows.append({"command": name, "seconds": round(seconds, 2), "calls": dict(calls), "in all": calls.total()})
    return rows


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(complain(str(error), USER_ERROR))
