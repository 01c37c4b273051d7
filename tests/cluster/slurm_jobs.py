"""What tests do to jobs of a real SLURM, and how they look at what has become of them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_runs
from slurm_cluster import start_time

from mvar.cluster.profiles import Profile
from mvar.cluster.submission import Submission, log_paths
from mvar.cluster.submit import plan, submit
from mvar.config import RunConfig, override
from mvar.presets import PRESETS
from mvar.runs.states import DONE
from mvar.runs.store import Store

# Long enough for something to happen to it meanwhile.
TINY = tiny_runs.TINY | {
    "train.steps": 300,
    "evaluation.num_images": 20,
    "runtime.checkpoint_every": 25,
    "runtime.log_every": 5,
    "runtime.threads": 1,
    "runtime.device": "cpu",
}
CONFIG = override(PRESETS["smoke"], TINY)
PROFILE = Profile(cpus_per_task=1, mem_gb=4, timeout_min=60, signal_delay_s=30)
PATIENCE_S = 150.0


def until(what: str, holds: Callable[[], object], limit_s: float = PATIENCE_S) -> None:
    """Wait for something, and fail with its name where it does not come."""
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s in vain: {what}"
        time.sleep(0.05)


def ask(*command: str) -> str:
    """A command of SLURM's."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


class Slurm:
    """The session's cluster."""

    def __init__(self, root: Path, holder: subprocess.Popen) -> None:
        self.root, self._holder = root, holder
        self._original = ""  # slurm.conf, while a test has changed it

    def pid(self, daemon: str) -> int:
        return json.loads((self.root / "pids.json").read_text())[daemon]

    def kill(self, daemon: str) -> None:
        """SIGKILL a daemon, as a crash does."""
        os.kill(self.pid(daemon), signal.SIGKILL)

    def start(self, daemon: str) -> None:
        """Start a daemon again."""
        self._holder.stdin.write(f"start {daemon}\n")
        self._holder.stdin.flush()
        assert self._holder.stdout.readline() == "started\n"

    def revive(self) -> None:
        """Start what a test that failed has left dead."""
        for daemon, pid in json.loads((self.root / "pids.json").read_text()).items():
            if start_time(pid) is None:
                self.start(daemon)

    def configure(self, line: str, other: str) -> None:
        """Replace a line of slurm.conf in the running cluster; `restore` takes it back."""
        path = self.root / "slurm.conf"
        text = path.read_text()
        self._original = self._original or text
        path.write_text(text.replace(line, other))
        ask("scontrol", "reconfigure")

    def restore(self) -> None:
        """The configuration that the cluster was booted with, and every daemon that a failed test has left dead."""
        self.revive()
        if self._original:
            (self.root / "slurm.conf").write_text(self._original)
            self._original = ""
            until("controller", self.is_up)
            ask("scontrol", "reconfigure")

    def is_up(self) -> bool:
        states = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%t"], capture_output=True, text=True)
        return states.returncode == 0 and set(states.stdout.split()) <= {"idle", "mix", "alloc", "comp"}

    def until_saved(self, job_id: str) -> None:
        """Until the controller has its jobs on disk: it writes a change seconds later, and a crash forgets the rest."""
        began = time.time()
        ask("scontrol", "update", f"JobId={job_id}", "Comment=saved")
        until("saved state", lambda: (self.root / "state" / "job_state").stat().st_mtime > began)

    def processes(self, job_id: str, what: str = "submitit") -> list[int]:
        """The Python processes of a job, by rank; with `what` slurmstepd its steps' daemons."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if f"SLURM_CONF={self.root}/slurm.conf" not in variables or start_time(int(entry.name)) is None:
                continue
            if what == "slurmstepd" and f"[{job_id}." in words:
                found.append((0, int(entry.name)))
            elif what in words and f"SLURM_JOB_ID={job_id}" in variables and "srun" not in words:
                rank = next((v for v in variables if v.startswith("SLURM_PROCID=")), "=0")
                found.append((int(rank.partition("=")[2]), int(entry.name)))
        return [pid for _, pid in sorted(found)]


@dataclass
class Sent:
    """A submitted run."""

    store: Store
    config: RunConfig
    submission: Submission
    index: int = 0  # of its element in the last job

    @property
    def job_id(self) -> str:
        return self.submission.jobs[-1].job_id

    @property
    def run(self):
        return self.store.run(self.config.run_id)

    def log(self) -> str:
        paths = log_paths(self.submission, self.submission.jobs[-1], self.index)
        return "".join(path.read_text(errors="replace") for path in paths if path.suffix == ".err")

    def until_training(self, checkpoints: int = 0) -> None:
        """Until training is under way and has written some checkpoints."""
        until(
            f"training of {self.job_id}\n{self.state()}",
            lambda: self.run.metrics.is_file() and len(list(self.run.path.glob("checkpoints/step*"))) >= checkpoints,
        )

    def state(self) -> str:
        """What squeue calls the job; empty once it has left the queue."""
        return ask("squeue", "-h", "-a", "--name", self.submission.jobs[-1].name, "-o", "%T").strip()

    def until_gone(self, limit_s: float = PATIENCE_S) -> None:
        """Until the job has left the queue."""
        until(f"end of {self.job_id}\n", lambda: not self.state(), limit_s)

    def until_restarted(self, limit_s: float = PATIENCE_S) -> None:
        """Until SLURM has queued the job again."""
        until("requeue", lambda: "Restarts=0" not in ask("scontrol", "show", "job", self.job_id), limit_s)


def send(store: Store, config: RunConfig = CONFIG, **profile) -> Sent:
    """Submit a run."""
    chosen = PROFILE.model_copy(update=profile)
    return Sent(store, config, submit(plan([config], store), store, chosen))


def kill_node(slurm: Slurm, sent: Sent, node: str) -> None:
    """What a power cut does to a node: its daemon, the job's steps and tasks are gone at once."""
    slurm.kill(f"slurmd.{node}")
    for process in [*slurm.processes(sent.job_id, "slurmstepd"), *slurm.processes(sent.job_id)]:
        os.kill(process, signal.SIGKILL)


def rows(run) -> list[dict]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("_s", "_ms"))} for line in lines]


def assert_same_end(sent: Sent, reference: Path) -> None:
    """The run is done and every byte of it, times aside, is that of the run without a cluster."""
    ours, theirs = sent.run, Store(reference).run(sent.config.run_id)
    assert ours.state() == DONE, (ours.status(), sent.log())
    assert ours.weights.read_bytes() == theirs.weights.read_bytes()
    assert rows(ours) == rows(theirs)
    (key, record), other = next(iter(ours.evaluations().items())), theirs.evaluations()
    assert record | {"timing": 0} == other[key] | {"timing": 0}
    drawn = [np.load(run.samples(key) / "samples.npz")["arr_0"] for run in (ours, theirs)]
    np.testing.assert_array_equal(*drawn)
