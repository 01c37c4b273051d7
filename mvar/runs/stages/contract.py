"""What a stage is: it has inputs (stages before it), outputs (`load` or `open`), and `run`, which does what is missing.

A stage knows its own directory and its inputs, nothing of the pipeline or of the store. `run` may be called at any
time, in any process, after any kill: where all is there it returns at once.
"""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch

from mvar import layout
from mvar.config import Config, RunConfig, RuntimeConfig, identity
from mvar.data.rounds import Heed
from mvar.errors import MEMORY_ERRORS, UserError, full_memory, memory_told
from mvar.files import atomic_write
from mvar.progress import Progress
from mvar.runs.documents import write_document
from mvar.runs.environment import at_one_piece
from mvar.runs.states import DONE, FAILED, RUNNING, STOPPED, ShouldStop, Stopped
from mvar.runs.store import Directory, RunDirectory, one_line
from mvar.training import distributed
from mvar.training.distributed import Group

E = TypeVar("E", bound=Exception)
REMEDY = "delete that file, then the command that made it, or needs it, makes it again from the last checkpoint"
Tell = Callable[[str, int, int], None]  # (stage, done, total)


def nobody(stage: str, done: int, total: int) -> None:
    """Is told, and does nothing."""


def never() -> bool:
    """Asks no work to stop."""
    return False


@dataclass(frozen=True)
class Watch:
    """Who watches the work: whom to tell how far it is, and who says when it is to stop."""

    tell: Tell = nobody
    should_stop: ShouldStop = never

    def report(self, stage: str) -> Progress:
        """The `progress(done, total)` of one stage."""
        return lambda done, total: self.tell(stage, done, total)

    def heed(self, stage: str) -> Progress:
        """The `progress(done, total)` of work that keeps no part of itself when it is stopped: it raises `Stopped`.

        Not among several processes at one piece of work: the others would wait for it. They ask all of them.
        """

        def report(done: int, total: int) -> None:
            self.tell(stage, done, total)
            if not at_one_piece():
                self.check()

        return report

    def check(self) -> None:
        """Raise `Stopped` if work was asked to stop."""
        if self.should_stop():
            raise Stopped("asked to stop")

    def under(self, stage: str) -> "Watch":
        """The same, of work that is a part of another stage and tells how far it is under that one's name."""
        return Watch(lambda _, done, total: self.tell(stage, done, total), self.should_stop)


@contextmanager
def all_together(runtime: RuntimeConfig, watch: Watch, call: Mapping[str, Any]) -> Iterator[tuple[Group, Heed]]:
    """All processes of a job at one piece of work: one that is asked to stop stops all, at one point.

    Args:
        runtime: how work is done.
        watch: who says when this process is to stop.
        call: what the first process calls the others by; nothing is called by those.
    """
    team = distributed.current_team()
    if team and not team.rank:
        team.call(call)
    with distributed.together(runtime) as group:

        def heed() -> None:
            if group.any(watch.should_stop()):
                raise Stopped("asked to stop")

        yield group, heed


@contextmanager
def recorded(directory: Directory, stage: str) -> Iterator[None]:
    """Keep a directory's status true to what happens inside the block: running, then failed or stopped.

    The status has the reason as one line; `error.txt` beside it has the traceback of what is no user's mistake. Memory
    that gets full is one: a `UserError`.
    """
    directory.write_status(RUNNING, stage)
    try:
        with within_memory():
            yield
    except BaseException as error:
        state = STOPPED if isinstance(error, Stopped | KeyboardInterrupt) else FAILED
        try:
            current = (directory.status() or {}).get("stage", stage)
            directory.write_status(state, current, reason=one_line(error))
            if state == FAILED and not isinstance(error, UserError):
                with atomic_write(directory.path / layout.ERROR) as file:
                    file.write(traceback.format_exc().encode(errors="replace"))
        except (OSError, UserError):
            pass  # a full disk, a damaged file: the failure itself matters more than its record
        raise


@contextmanager
def retold(kind: type[E] | tuple[type[E], ...], tell: Callable[[E], str]) -> Iterator[None]:
    """An exception inside the block becomes a `UserError` with other words; without words it stays."""
    try:
        yield
    except kind as error:
        if told := tell(error):
            raise UserError(told) from None
        raise


def way_out() -> AbstractContextManager[None]:
    """Weights that cannot be used, inside the block: say how to get them back."""
    return retold(UserError, lambda error: f"{error}; {REMEDY}")


def within_memory() -> AbstractContextManager[None]:
    """Memory that gets full, inside the block: say so in one line."""
    return retold(MEMORY_ERRORS, memory_told)


def room_made_by(field: str, value: object, *fields: str) -> AbstractContextManager[None]:
    """Memory that gets full, inside the block: say which settings take less of it.

    Args:
        field, value: of `runtime`: how many images are worked on at once.
        fields: others of `runtime` that may be `auto` with it.
    """

    def tell(error: Exception) -> str:
        if not (reason := full_memory(error)):
            return ""
        allowed = "fewer images at once"
        if isinstance(error, torch.OutOfMemoryError):  # of a GPU
            auto = " ".join(f"runtime.{name}=auto" for name in (field, *fields))
            allowed = f"{auto}, or fewer images at once, on a GPU of its own"
        return f"runtime.{field}: {'none' if value is None else value}: {reason}; allowed: {allowed}"

    return retold(MEMORY_ERRORS, tell)


@dataclass(frozen=True)
class Stage(ABC):
    """A stage of one run, whose directory the pipeline holds while it works: no other process is in it."""

    directory: Directory
    watch: Watch
    name: ClassVar[str]  # in the status, and where progress is told

    @abstractmethod
    def is_done(self) -> bool:
        """Whether nothing is missing."""

    @abstractmethod
    def make(self) -> None:
        """Do what is missing.

        Raises:
            Stopped: it was asked to stop. The next call goes on from what is on disk.
        """

    def run(self) -> None:
        """Do what is missing; as `make`."""
        if not self.is_done():
            self.make()


@dataclass(frozen=True)
class RunStage(Stage):
    """A stage of one run: its directory is the run's, its settings are in the run's config."""

    directory: RunDirectory
    config: RunConfig


@dataclass(frozen=True)
class LockedStage(Stage):
    """A stage in a directory that others work in too: whoever comes second waits, and finds it done."""

    def run(self) -> None:
        """Do what is missing, under the directory's lock; as `make`."""
        if self.is_done():
            self.confirm()
            return
        with self.directory.lock(self.watch.should_stop):
            if not self.is_done():
                self.make()

    def confirm(self) -> None:
        """Hold what was found finished against what it was made from, where that can have changed.

        Raises:
            UserError: it has.
        """
        return


@dataclass(frozen=True)
class SharedStage(LockedStage):
    """A stage that several runs share, in a directory of its own, which says how it goes and what it is made from."""

    @property
    @abstractmethod
    def origin(self) -> Mapping[str, Config]:
        """The sections of the config that it is made from, by name."""

    @abstractmethod
    def build(self) -> Mapping[str, float]:
        """Make it; returns what the status says beside that it is done. As `make`."""

    def check(self) -> None:
        """Refuse, before anything else, what would be for nothing: a `UserError`."""
        return

    def make(self) -> None:
        """Build it, its status true to that all the while."""
        with recorded(self.directory, self.name):
            self.check()
            write_origin(self.directory, self.origin)
            values = self.build()
            self.directory.write_status(DONE, self.name, **values)


def write_origin(directory: Directory, sections: Mapping[str, Config]) -> None:
    """Keep what a stage is made from, beside its id: so it is found under every spelling of that."""
    write_document(directory.path / layout.CONFIG, {n: identity.as_document(s) for n, s in sections.items()})
