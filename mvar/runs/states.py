"""What becomes of runs and stages: the states that their documents hold, and those that a look from outside finds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"  # what `status.json` holds
MISSING, INTERRUPTED, QUEUED = "missing", "interrupted", "queued"  # what `mvar status` finds out

ShouldStop = Callable[[], bool]  # asked at every step; True: leave a checkpoint and return


class Stopped(Exception):
    """Work was asked to stop and has left a checkpoint: the same command goes on from there."""


@dataclass(frozen=True)
class Seen:
    """What has become of a run or stage."""

    state: str  # any of the states above
    status: dict[str, Any] | None = None  # its own status document
    reason: str = ""
    job: str = ""  # of SLURM
    node: str = ""
