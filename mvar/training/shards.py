"""Checkpoints of several processes: a folder to which each writes what it holds (torch.distributed.checkpoint).

A folder gets its name when it is complete: before that it is hidden, and a killed writer's is deleted. `digests.json`
in it names every file; torch's own index is a pickle, which is looked through before it is loaded.
"""

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mvar import layout
from mvar.artefacts import note_all, read_record, record_problem
from mvar.checkpoints.checkpoint_files import SHARDS_INDEX
from mvar.checkpoints.pickles import objects_of, read_pickle
from mvar.errors import UserError
from mvar.files import atomic_write, file_digest
from mvar.training.kept import Kept, begun, keep_newest, remove, step_of
from mvar.training.shares import is_shared

INDEXED = re.compile(
    r"torch\.distributed\.checkpoint\.metadata\.((Tensor|Bytes|Chunk)StorageMetadata|Metadata(Index)?|StorageMeta"
    r"|TensorProperties|_MEM_FORMAT_ENCODING)|torch\.distributed\.checkpoint\.filesystem\._StorageInfo"
    r"|pathlib\.(_local\.)?(Posix|Windows)?Path|torch\.(Size|[a-z]+\d\w*|bool)|torch\.serialization\._get_layout"
)


def path_of(directory: Path | str, step: int) -> Path:
    """Where the checkpoint of a step lies that several processes have written."""
    return Path(directory) / f"step_{step:08d}"


def own_part(tensors: dict[str, Tensor], rank: int, world: int) -> dict[str, Tensor]:
    """What a process writes: its share of what is shared, and of what all have whole about as much as each other."""
    loads, chosen = [0] * world, dict(tensors)
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].numel(), item[0])):
        if not is_shared(value):
            lightest = loads.index(min(loads))
            loads[lightest] += value.numel() * value.element_size()
            if lightest != rank:
                del chosen[name]
    return chosen


class Writing:
    """A checkpoint that is being written while training goes on. Every process makes one, at the same step.

    Args:
        path: what the folder is to be called.
        tensors: by name; copied before this returns.
        rest: what else there is to know, of the first process; copied as well, and pickled to the file itself.
        keep: how many checkpoints stay.
        group: of all processes, on the CPU, used by nothing else meanwhile.
        as_they_are: nothing is copied; whoever makes this changes nothing of it before `wait` has returned.
    """

    def __init__(
        self,
        path: Path,
        tensors: dict[str, Tensor],
        rest: dict[str, Any],
        keep: int,
        group: Any,
        as_they_are: bool = False,
    ) -> None:
        from torch.distributed.checkpoint.staging import BlockingAsyncStager

        self._path, self._keep, self._group = path, keep, group
        self._rank, self._world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        own = own_part(tensors, self._rank, self._world)
        self._tensors = own if as_they_are else BlockingAsyncStager().stage(own)
        self._rest = rest if as_they_are or self._rank else tree_map(_copy, rest)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)  # whoever fails meanwhile does not wait for it
        self._thread.start()

    def wait(self) -> None:
        """Until all processes have written their part and the folder has its name.

        Raises:
            OSError: a full disk, say, in any of them.
        """
        self._thread.join()
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self._error = error

    def _write(self) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        folder, group = begun(self._path), self._group
        together(lambda: save(self._tensors, storage_writer=FileSystemWriter(folder), process_group=group))
        written = together(lambda: {p.name: file_digest(p) for p in folder.glob(f"__{self._rank}_*")}, group)
        together(lambda: None if self._rank else self._complete(folder, written), group)

    def _complete(self, folder: Path, written: list[dict[str, str]]) -> None:
        rest = folder / layout.CHECKPOINT_REST
        with atomic_write(rest) as file:
            torch.save({"step": step_of(self._path), "state": self._rest}, file)
        digests = {path.name: file_digest(path) for path in (rest, folder / SHARDS_INDEX)}
        note_all(folder, {name: sha256 for part in (digests, *written) for name, sha256 in part.items()})
        if self._path.exists():  # could not be read: its steps were done again
            remove(self._path)
        folder.rename(self._path)
        keep_newest(self._path, self._keep)


def _copy(value: Any) -> Any:
    """Of a tensor, running means say, on the CPU."""
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else deepcopy(value)


def together(work: Callable[[], Any], group: Any = None) -> list[Any]:
    """What every process's work gives, by rank; what fails in one is raised in all.

    Args:
        work: of this process.
        group: the processes; None: `work` itself is of all of them, and of torch.distributed.checkpoint.

    Raises:
        OSError, UserError: what the first that failed has raised.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        found, error = work(), None
    except CheckpointException as failure:
        raise _plain(next(iter(failure.failures.values()))[0]) from None
    except Exception as failure:
        found, error = None, failure
    if group is None:
        if error:
            raise error
        return [found]
    told: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(told, (found, error and _plain(error)), group=group)
    for _, failure in told:
        if failure:
            raise failure
    return [part for part, _ in told]


def _plain(error: BaseException) -> Exception:
    """An error as it can be sent and is understood: that of a full disk with its file, others by their words."""
    hidden = error.__context__ if isinstance(error.__context__, OSError) else error  # torch's way to say it
    if isinstance(hidden, OSError):
        return OSError(hidden.errno, hidden.strerror, hidden.filename)
    return UserError(str(error)) if isinstance(error, UserError) else ValueError(f"{type(error).__name__}: {error}")


class Shards(Kept):
    """A checkpoint in a folder."""

    group: Any = None  # of the processes that `fill` together; None: one alone

    def __init__(self, path: Path, step: int, rest: dict[str, Any], sizes: dict[str, Any]) -> None:
        super().__init__(path, step, rest)
        self._sizes = sizes

    def sizes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return self._sizes

    def fill(self, targets: dict[str, Tensor]) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        self.check(targets)
        reader, alone = FileSystemReader(self.path), self.group is None
        with warnings.catch_warnings(action="ignore"):  # that one process is alone
            together(lambda: load(dict(targets), storage_reader=reader, process_group=self.group, no_dist=alone))


def open_shards(path: Path, rank: int = 0, world: int = 1) -> Shards:
    """Open a folder that `Writing` has made.

    Args:
        path: the folder.
        rank, world: of a process that compares its part of the digests.

    Raises:
        UserError: a file is missing, damaged, or would run code; names it.
    """
    try:
        _check_files(path, rank, world)
        content = read_pickle(path / layout.CHECKPOINT_REST)
        step, rest = content["step"], content["state"]
        if type(step) is not int or step != step_of(path) or not isinstance(rest, dict):
            raise ValueError("it holds no state of its step")
        return Shards(path, step, rest, _sizes(path))
    except Exception as error:  # kinds of damage are many, as of one file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable checkpoint ({reason}); allowed: a complete one") from None


def _check_files(path: Path, rank: int, world: int) -> None:
    try:
        if problem := record_problem(path):
            raise UserError(problem)
    except FileNotFoundError:
        raise UserError(f"{layout.DIGESTS} is missing") from None
    files = sorted(read_record(path).items())
    missing = [name for name, _ in files if not (path / name).is_file()]
    if missing or not files:
        raise UserError(f"{', '.join(missing[:5])} of {len(files)} files missing")
    for name, entry in files[rank::world]:
        if (found := file_digest(path / name)) != entry["sha256"]:
            raise UserError(f"{name} is damaged: SHA-256 {found[:12]}... where {entry['sha256'][:12]}... was written")


def _sizes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with open(path / SHARDS_INDEX, "rb") as file:
        foreign = [name for name in objects_of(file) if not INDEXED.fullmatch(name)]
    if foreign:
        raise UserError(f"{SHARDS_INDEX} holds Python objects ({foreign[0][:80]}), which could run code")
    found = FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: value for name, value in found.items() if isinstance(value, TensorStorageMetadata)}
    return {name: (value.size, value.properties.dtype) for name, value in tensors.items()}
