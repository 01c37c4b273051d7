"""Atomic files: a reader sees the old content or the new one, never half of it, whatever kills the writer."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mvar.errors import UserError

STAMPED_FROM_BYTES = 64 << 20  # smaller files are read in a twentieth of a second


@contextmanager
def atomic_write(path: Path | str) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; rename it over `path` when the block ends well, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes 0600: others on a cluster could not read results
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        hidden = error.__context__
        if isinstance(error, RuntimeError) and isinstance(hidden, OSError):  # torch.save's way to say it
            error = hidden
        if isinstance(error, OSError) and error.filename is None:  # a full disk: say what could not be written
            error.filename = str(path)
        raise error from None


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Give an OSError inside the block, of a full disk say, the name of the file: of an open one it tells none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: JSON has neither."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a corrupt one is a `UserError` that names it. A missing one raises FileNotFoundError."""
    try:
        return json.loads(Path(path).read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


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
