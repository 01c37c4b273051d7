"""Atomic files: a reader sees the old content or the new one, never half of it, whatever kills the writer.

A link to a file is replaced, never followed: what it leads to, perhaps somebody else's, stays as it is. Directories may
be links (runs on another disk).
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from mvar.errors import UserError

STAMPED_FROM_BYTES = 64 << 20  # smaller files are read in a twentieth of a second
# A temporary file's name: of which machine and process, or of an earlier version, which did not say.
TEMPORARY = re.compile(r"\..+?\.(?:(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<began>\d*)\.)?[a-z0-9_]{8}\.tmp")
STRANGE_AGE_S = 24 * 3600  # after which a temporary file is left over whose writer cannot be asked for


@contextmanager
def atomic_write(
    path: Path | str, mode: int = 0o666, before: Callable[[Path], None] | None = None
) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; rename it over `path` when the block ends well, else remove it.

    The temporary file's name says who writes it, so that `remove_leftovers` knows what a killed process has left.

    Args:
        path: the file; a link is replaced by a file of its own.
        mode: permissions, less what the umask (or the folder's default ACL) takes, as for any new file. Those of a file
            that is replaced are not kept.
        before: called with the temporary file, which is whole and on the disk, before it gets its name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{machine()}-{os.getpid()}-{process_began(os.getpid())}"
    temporary = path.with_name(f".{path.name}.{writer}.{secrets.token_hex(4)}.tmp")
    try:
        # made with its final mode: the kernel applies the umask, which cannot be asked for without setting it
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before:
            before(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        hidden = error.__context__
        if isinstance(error, RuntimeError) and isinstance(hidden, OSError):  # torch.save's way to say it
            error = hidden
        if isinstance(error, OSError) and error.filename is None:  # a full disk: say what could not be written
            error.filename = str(path)
        raise error from None


def check_place(what: str, path: Path | str) -> None:
    """Refuse a path that no file can be written to, before the work whose result it is for; nothing is left there.

    Raises:
        UserError: a folder that is missing or may not be written in, or a path that is a folder; names `what`.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{what}: {path} is a folder; allowed: a file")
    if not path.parent.is_dir():
        raise UserError(f"{what}: {path}: there is no folder {path.parent}; allowed: a file in one that is there")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"{what}: {path.parent} cannot be written in ({error.strerror}); allowed: a file in a folder that can"
        ) from None


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Give an OSError inside the block, of a full disk say, the name of the file: of an open one it tells none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def own_file(path: Path | str) -> Path:
    """`path`, for a file that is about to be written in place: a link becomes a file of its own with the same bytes."""
    path = Path(path)
    if path.is_symlink():
        if path.is_file():
            with open(path, "rb") as source, atomic_write(path) as file:
                shutil.copyfileobj(source, file)
        elif not path.exists():
            path.unlink()  # leads nowhere
    return path


@cache
def machine() -> str:
    """8 hex digits for where process ids mean the same: a host since its start, or a container on it."""
    found = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", Path.readlink)):
        with suppress(OSError):  # no Linux
            found.append(str(read(Path(path))))
    return digest(found)


def process_began(pid: int) -> str | None:
    """When a process of this machine began, in ticks: with its id it names it for ever.

    Returns:
        None: there is no such process; empty: there is one, but when it began cannot be asked for.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (PermissionError, OverflowError):
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files in a directory, and below it, whose writers are dead; never a living one's."""
    for path in directory.rglob(".*.tmp"):
        with suppress(OSError):  # gone meanwhile, or of another user
            if _is_left_over(path):
                path.unlink()


def _is_left_over(path: Path) -> bool:
    named, found = TEMPORARY.fullmatch(path.name), path.lstat()
    if named is None or not stat.S_ISREG(found.st_mode):
        return False  # not ours
    if named["machine"] == machine():
        began = process_began(int(named["pid"]))
        return began is None or bool(began and named["began"] and began != named["began"])
    return time.time() - found.st_mtime > STRANGE_AGE_S


def write_json(path: Path | str, value: Any, mode: int = 0o666) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: JSON has neither."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_write(path, mode) as file:
        file.write(text.encode())


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a corrupt one is a `UserError` that names it. A missing one raises FileNotFoundError."""
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def digest(value: Any, length: int = 8) -> str:
    """The first hex digits of SHA-256 over the canonical JSON of `value`: one value, one digest."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: Path | str, stamp: Path | None = None) -> str:
    """SHA-256 of a file that seldom changes, in hex; a large one is read through once for each state of it.

    The digest of a file of 64 MiB or more is kept in a stamp with the file's size and times, and holds as long as
    those do: what the disk changes behind the back of the file system is found by `file_digest` alone.

    Args:
        path: the file.
        stamp: where the digest is kept; None: `.NAME.sha256` beside the file. Where none can be written, the file is
            read every time.
    """
    path = Path(path)
    stamp = stamp or path.with_name(f".{path.name}.sha256")
    found = path.stat()  # before reading: a change meanwhile makes the stamp invalid
    if found.st_size < STAMPED_FROM_BYTES:
        return file_digest(path)
    state = _state(found)
    try:
        kept = read_json(stamp)
        if {name: kept[name] for name in state} == state:
            return str(kept["sha256"])
    except (OSError, UserError, KeyError, TypeError):
        pass  # none yet, or a damaged one
    sha256 = file_digest(path)
    with suppress(OSError):  # another user's folder, a full disk
        write_json(stamp, state | {"sha256": sha256})
    return sha256


def remember_digest(path: Path | str, sha256: str) -> None:
    """Keep the digest of a file that was written just now, so that `known_digest` need not read it."""
    path = Path(path)
    found = path.stat()
    if found.st_size >= STAMPED_FROM_BYTES:
        with suppress(OSError):
            write_json(path.with_name(f".{path.name}.sha256"), _state(found) | {"sha256": sha256})


def _state(found: os.stat_result) -> dict[str, int]:
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}


def expand(path: Path | str) -> Path:
    """A path with `~` and environment variables expanded."""
    return Path(os.path.expandvars(os.path.expanduser(str(path))))


def portable(path: str) -> str:
    """Absolute, so that any process finds it; a path with variables stays as it is and names no machine."""
    return path if "$" in path or path.startswith("~") else str(Path(path).absolute())
