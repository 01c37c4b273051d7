"""The calls to SLURM's commands, each with a time limit and an error of one line."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mvar.cluster.profiles import Profile, user_sbatch_variables
from mvar.errors import UserError

TIMEOUT_S = 60.0
# Of a job or launcher that this process itself may run in: sbatch and the job would take them for their own.
FOREIGN = re.compile(
    r"(SLURM|SBATCH|SRUN|SUBMITIT|TORCHELASTIC)_(?!CONF$)|(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK"
    r"|MASTER_ADDR|MASTER_PORT)$"
)
# Defaults of the user's shell for these commands: SQUEUE_STATES=R, say, would hide what is queued.
DEFAULTS = re.compile(r"(SQUEUE|SCANCEL|SCONTROL|SINFO)_")
FORMAT = "%i|%j|%T|%r|%L|%N"
MAX_ARGUMENT = 64_000  # characters: the kernel takes half as many again, and a terminal's shell no fewer
MAX_IDS = 1000  # of one scancel
# States of a job that is at work, some of them seen for a moment only.
ALIVE = ("RUNNING", "SIGNALING", "RESIZING", "STOPPED", "CONFIGURING")
AWAY = re.compile(r"no answer|contact|connect|timed out|communication|standby|zero bytes", re.I)
# What SLURM's commands say where they are installed and no cluster is known.
UNCONFIGURED = re.compile(r"establish a configuration source|slurm\.conf.*No such file", re.I)
MAX_ARRAY_SIZE = 1001  # SLURM's default


class SchedulerError(UserError):
    """A command of SLURM failed or is not there; the message has what it said."""

    @property
    def is_passing(self) -> bool:
        """Whether the controller was away, as while it is restarted, and did not refuse."""
        return AWAY.search(str(self)) is not None


@dataclass(frozen=True)
class Entry:
    """One line of squeue: a job, or one element of an array."""

    job_id: str  # 12, or 12_3 for element 3
    name: str
    state: str  # PENDING, RUNNING, COMPLETING ...
    reason: str
    time_left: str  # until the job's time limit, as SLURM writes it
    node: str

    @property
    def index(self) -> int:
        """The element of the array; 0 for a job that is none."""
        return int(self.job_id.partition("_")[2] or 0)


def is_here() -> bool:
    """Whether SLURM's commands are on this machine and know of a cluster, be it one that does not answer now."""
    if shutil.which("scontrol") is None:
        return False
    try:
        call("scontrol", "show", "config")
    except SchedulerError as error:
        return not UNCONFIGURED.search(str(error))
    return True


def call(*command: str) -> str:
    """Run a command of SLURM; returns its output.

    Raises:
        SchedulerError: it is not installed, failed or took too long.
    """
    environment = {name: value for name, value in os.environ.items() if not DEFAULTS.match(name)}
    streams = {"capture_output": True, "stdin": subprocess.DEVNULL}
    try:
        result = subprocess.run(command, text=True, timeout=TIMEOUT_S, env=environment, **streams)
    except FileNotFoundError:
        raise SchedulerError(
            f"cluster: {command[0]} is not on PATH; allowed here: --cluster local or inprocess, or a machine with SLURM"
        ) from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{command[0]}: no answer in {TIMEOUT_S:.0f} s") from None
    if result.returncode:
        said = " ".join((result.stderr or result.stdout).split()) or f"exit code {result.returncode}"
        raise SchedulerError(f"{command[0]}: {said}")
    return result.stdout


def queued(names: Iterable[str]) -> list[Entry]:
    """What of the jobs with these names is pending or running: one squeue, none where there are no names.

    By name and not by id: the names are on disk before sbatch is called, so a submission that was killed between
    sbatch and noting the id is found all the same; and squeue fails for ids that it has forgotten. More names than
    fit into one argument are asked for in turn.
    """
    entries: list[Entry] = []
    for chunk in _chunks(sorted(set(names))):
        lines = call("squeue", "--noheader", "--array", "--all", f"--name={','.join(chunk)}", f"--format={FORMAT}")
        entries += [Entry(*line.split("|")) for line in lines.splitlines() if line.count("|") == FORMAT.count("|")]
    return entries


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for name in names:
        if chunk and size + len(name) + 1 > MAX_ARGUMENT:
            yield chunk
            chunk, size = [], 0
        chunk.append(name)
        size += len(name) + 1
    if chunk:
        yield chunk


def cancel(job_ids: Iterable[str]) -> None:
    """Take jobs, or elements of arrays, from the queue; as many scancels as their ids need."""
    ids = list(job_ids)
    for start in range(0, len(ids), MAX_IDS):
        call("scancel", *ids[start : start + MAX_IDS])


def job_state(job_id: str) -> str | None:
    """The state of a job (12) or of an element (12_3); None where SLURM no longer queues it.

    Its line is looked for by name: the number that an array and its last element share stands for all elements.
    """
    try:
        lines = call("squeue", "--noheader", "--array", "--all", f"--jobs={job_id}", "--format=%i %T").splitlines()
    except SchedulerError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return dict(line.split() for line in lines).get(job_id)


def is_preempted(job_id: str) -> bool:
    """Whether SLURM has said that it takes the nodes of a job that is at work."""
    return re.search(r"\bPreemptTime=\d", call("scontrol", "show", "job", job_id)) is not None


def max_array_size() -> int:
    """How many elements an array may have; 1 where the site has turned arrays off.

    Raises:
        SchedulerError: scontrol fails, or says something else than a number.
    """
    text = settings().get("MaxArraySize", str(MAX_ARRAY_SIZE))
    if not re.fullmatch(r"\d{1,9}", text):
        raise SchedulerError(f"scontrol: MaxArraySize is {text!r}; allowed: a number; ask the cluster's operators")
    return max(1, int(text))


def settings() -> dict[str, str]:
    """The cluster's configuration, as `scontrol show config` prints it."""
    pairs = (line.partition("=") for line in call("scontrol", "show", "config").splitlines())
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


@contextmanager
def clean_environment(profile: Profile) -> Iterator[None]:
    """Without the variables of a job or launcher around this process; those stay that point to the cluster."""
    kept, before = user_sbatch_variables(profile), dict(os.environ)
    for name in before:
        if FOREIGN.match(name) and name not in kept:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
