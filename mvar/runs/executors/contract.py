"""What an executor is: whatever takes a list of runs and has them made, here and now or elsewhere and later."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from mvar.config import RunConfig
from mvar.errors import UserError, quoted
from mvar.plugins import blamed
from mvar.registries import EXECUTORS
from mvar.runs.states import FAILED
from mvar.runs.store import Store
from mvar.runs.workers import Outcome


@dataclass
class Summary:
    """How a list of runs ended."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by the task's key: of a run each evaluation has one
    num_runs: int = 0
    num_done: int = 0
    interrupted: bool = False
    lacking: dict[str, int] = field(default_factory=dict)  # metrics, and how many finished runs are without

    @property
    def failures(self) -> dict[str, Outcome]:
        """What failed, by the name of the run or stage; a run that lacks a failed stage is not among them."""
        failed: dict[str, Outcome] = {}
        for key, outcome in self.outcomes.items():
            if outcome.state == FAILED:
                failed.setdefault(key.partition("/")[0], outcome)
        return failed

    def complaints(self) -> list[str]:
        """One line a reason, with the names of all that failed for it."""
        names: dict[str, list[str]] = {}
        for name, outcome in self.failures.items():
            names.setdefault(outcome.reason.removeprefix(f"run {name}: "), []).append(name)
        return [f"{', '.join(failed)}: {reason}" for reason, failed in names.items()]


class Settings(Protocol):
    """What every executor is given beside the runs: `mvar.cluster.profiles.Profile`, or as much of it."""

    @property
    def workers(self) -> int:
        """Processes at a time; 0: one a core or a GPU."""
        ...


S = TypeVar("S", bound=Settings)


class Executor(ABC, Generic[S]):
    """Has runs made. A name in `mvar.registries.EXECUTORS` stands for a class; it is made without arguments."""

    is_queue: ClassVar[bool] = False
    """Whether runs are only sent: `execute` returns at once, `mvar retry` may send them again, and `mvar submit
    --dry-run` is the executor's own."""

    @abstractmethod
    def uses(self, field: str) -> bool:
        """Whether a field of a profile means something to it; one that does not is refused."""

    def check_results(self, results: Path) -> None:
        """Refuse a results directory that it could not work in, before anything is read or written.

        Raises:
            UserError: names the path and what is allowed.
        """

    @abstractmethod
    def execute(
        self, requests: Sequence[tuple[S, Sequence[RunConfig]]], store: Store, dry_run: bool = False
    ) -> Summary | None:
        """Make the runs that are not done, by profile, or send them to where they will be made.

        Args:
            requests: profiles, and the runs of each.
            store: where runs are kept.
            dry_run: of a queue: only say what would be sent.

        Returns:
            How they ended; None of a queue.

        Raises:
            UserError: what was asked for is not possible.
        """


def find(name: str) -> Executor[Any]:
    """The executor of a name.

    Raises:
        UserError: there is none; lists those that there are.
    """
    return EXECUTORS.find(name)()


def used_by(name: str, fields: Iterable[str]) -> set[str]:
    """The fields of a profile that mean something to an executor.

    Raises:
        UserError: as `find`; one of the user's own that raises.
    """
    executor = find(name)
    try:
        return {field for field in fields if executor.uses(field)}
    except Exception as error:  # a validator of a profile calls this, and takes some errors for those of values
        raise UserError(blamed(error) or f"executor {name!r} raises {type(error).__name__}: {error}") from error


def ended(name: str, summary: object) -> Summary | None:
    """What `execute` has given.

    Raises:
        UserError: neither a summary nor None.
    """
    if summary is None or isinstance(summary, Summary):
        return summary
    raise UserError(
        f"executor {name!r}: execute gives {quoted(summary, 60)}; allowed: a mvar.Summary, or None of a queue"
    )
