"""Atomic files: a reader sees the old content or the new one, never half of it, whatever kills the writer."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mvar.errors import UserError


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


def write_at(path: Path | str, offset: int, data: bytes) -> None:
    """Write into an existing file and sync; a memory map dies of a signal where the disk is full instead of raising."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: JSON has neither."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: Path | str) -> Any:
    """Read a JSON file; a corrupt one is a `UserError` that names it. A missing one raises FileNotFoundError."""
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def digest(value: Any, length: int = 8) -> str:
    """The first hex digits of SHA-256 over the canonical JSON of `value`: one value, one digest."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand(path: Path | str) -> Path:
    """A path with `~` and environment variables expanded."""
    return Path(os.path.expandvars(os.path.expanduser(str(path))))


def portable(path: str) -> str:
    """Absolute, so that any process finds it; a path with variables stays as it is and names no machine."""
    return path if "$" in path or path.startswith("~") else str(Path(path).absolute())
