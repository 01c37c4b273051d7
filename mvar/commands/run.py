"""`mvar run`: make the runs of sweeps on this machine."""

import os
import re
from dataclasses import dataclass
from typing import Annotated

import tyro

from mvar.commands.options import Answer, Word
from mvar.commands.outcome import conclude
from mvar.commands.request import Sweeps
from mvar.errors import OK, UserError, quoted


@dataclass(frozen=True)
class Run(Sweeps):
    """Make the runs of one or more sweeps that are not done yet; interrupted ones go on where they were.

    Example: `mvar run mixers layers --seeds 3`
    """

    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Worker processes; 0: one a core (or the cores of runtime.threads), or one a GPU."""

    def execute(self, arguments: list[str]) -> int:
        """Run them all; returns the exit code."""
        from mvar.runs.request import write_manifest

        if self.workers < 0:
            raise UserError(f"workers: {self.workers} is negative; allowed: 1 or more, 0 for one a core or GPU")
        if _processes() > 1:
            raise UserError(
                "run: started by several processes (torchrun?), which would each start workers; "
                "allowed: mvar submit ... --cluster inprocess there, or one process"
            )
        requests, configs, store = self.planned()
        if self.dry_run:
            from mvar.commands.run_tables import print_plan

            print_plan(requests, store, self.workers or None)
            return OK
        for request in requests:
            write_manifest(store, request, arguments)

        from mvar.runs.executors.local import Local, Workers

        return conclude(Local().execute([(Workers(self.workers), configs)], store), store)


@dataclass(frozen=True)
class Plan(Run, Answer):
    """Print what `mvar run` would make, with the same words: runs, parameters, FLOPs, estimated time; make nothing.

    Example: `mvar plan mixers --preset imagenet256-d16-online`
    """

    dry_run: tyro.conf.Suppress[bool] = True
    on: Word = ""
    """GPUs, as COUNTxCARD-MEMORYgb (8xh100-80gb), or a profile that says what its GPUs are. Then the table has
    peak memory of a training step, the settings that fit, GPU-hours and disk; exit code 2 where nothing fits a run."""
    mfu: Word = ""
    """With --on: the share of the cards' rate that GPU-hours rest on, 0.4 where none is given; or the JSON file that
    `make gpu` has measured it to."""

    def execute(self, arguments: list[str]) -> int:
        """Print it; returns the exit code."""
        if self.on:
            return self._on_gpus()
        if not self.json:
            return super().execute(arguments)
        from mvar.commands.run_tables import plan_of

        requests, _, store = self.planned()
        self.answer(plan_of(requests, store, self.workers or None).to_json())
        return OK

    def _on_gpus(self) -> int:
        from mvar.commands.gpu_table import Share, caches_gb, exit_code_of, machine_of, print_on, runs_on
        from mvar.runs.store import Store

        share, machine = Share.parse(self.mfu), machine_of(self.on)
        requests, store = self.requests(), Store(self.results)
        runs, caches = runs_on(requests, store, machine, share), caches_gb(requests, store)
        if self.json:
            told = {"on": self.on, "mfu": share.mfu, "mfu_is": share.told, "shared_disk_gb": caches}
            self.answer({**told, "runs": [run.to_json() for run in runs]})
        else:
            print_on(runs, machine, share, caches)
        return exit_code_of(runs, machine)


def _processes() -> int:
    """How many processes the launcher has started; an empty WORLD_SIZE is none set."""
    text = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(
            f"WORLD_SIZE: {quoted(text)} is no number of processes; allowed: unset it (the environment has it)"
        )
    return int(text)
