"""Digests of what a run leaves: each directory has a record of its files, and what is read is held against it.

`digests.json` names for each file the SHA-256 of its content and of the content before. It is written first, then the
file is renamed into place: a kill in between leaves the content before, which the record knows too. A file without a
record (older results, a file that the user put there) is accepted and counts as unchecked.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from mvar import layout
from mvar.errors import UserError, warn_once
from mvar.files import atomic_write, digest, file_digest, known_digest, read_json, write_json

SHA256 = re.compile(r"[0-9a-f]{64}")


class Check(Enum):
    """What the record says of a file's content."""

    SOUND = "as recorded"
    UNCHECKED = "no digest is recorded"
    WRONG = "not what was written"


class Wrong(UserError):
    """A file whose content is not what was written."""


@contextmanager
def write_artefact(path: Path | str) -> Iterator[BinaryIO]:
    """As `mvar.files.atomic_write`; before the file gets its name its digest is noted.

    Of a directory's files one process writes at a time.
    """
    path = Path(path)
    with atomic_write(path, before=lambda temporary: note(path, file_digest(temporary))) as file:
        yield file


def note(path: Path, sha256: str) -> None:
    """Note the digest of what `path` is about to become; what it is now stays valid. Files that are gone are dropped.

    A content that is damaged now gets no new validity by this.
    """
    known = read_record(path.parent)
    before = None
    if path.is_file() and compare(path, found := file_digest(path)) is not Check.WRONG:
        before = found
    kept = {name: entry for name, entry in known.items() if (path.parent / name).is_file()}
    _write_record(path.parent, {**kept, path.name: {"sha256": sha256, "before": before}})


def note_all(directory: Path, digests: Mapping[str, str]) -> None:
    """Note the digests of all files of a folder, which are there."""
    _write_record(directory, {name: {"sha256": sha256, "before": None} for name, sha256 in digests.items()})


def _write_record(directory: Path, files: dict[str, Any]) -> None:
    write_json(directory / layout.DIGESTS, {"files": files, "check": digest(files)})


def read_record(directory: Path) -> dict[str, Any]:
    """The entries of a directory by file name; empty where there is no record. A damaged one vouches for nothing."""
    path = directory / layout.DIGESTS
    try:
        if (problem := record_problem(directory)) is None:
            return read_json(path)["files"]
    except FileNotFoundError:
        return {}
    warn_once(f"{problem}; its files count as unchecked, delete it to hear no more of it")
    return {}


def record_problem(directory: Path) -> str | None:
    """What is wrong with a directory's record, in one line; None for a sound one. FileNotFoundError: there is none."""
    path = directory / layout.DIGESTS
    try:
        record = read_json(path)
        files = record["files"]
        sound = digest(files) == record["check"] and all(_is_entry(entry) for entry in files.values())
    except UserError as error:
        return str(error)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        sound = False
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        return f"{path}: cannot be read ({error.strerror})"
    return None if sound else f"{path}: damaged, or edited by hand"


def _is_entry(entry: Any) -> bool:
    return all(entry[name] is None or SHA256.fullmatch(entry[name]) for name in ("sha256", "before"))


def compare(path: Path, sha256: str) -> Check:
    """Hold the digest of a file's content against the record."""
    entry = read_record(path.parent).get(path.name)
    if entry is None:
        return Check.UNCHECKED
    return Check.SOUND if sha256 in (entry["sha256"], entry["before"]) else Check.WRONG


def read_artefact(path: Path) -> bytes:
    """The whole content of a file, read once and compared.

    Raises:
        Wrong: another content than the one that was written.
        FileNotFoundError: no such file.
    """
    content = path.read_bytes()
    complain_of(path, hashlib.sha256(content).hexdigest())
    return content


def complain_of(path: Path, sha256: str) -> Check:
    """Raise `Wrong` for a digest that is not the recorded one; else whether there is one."""
    if (found := compare(path, sha256)) is Check.WRONG:
        raise Wrong(f"{path}: damaged: {wrong_reason(path, sha256)}")
    return found


def wrong_reason(path: Path, sha256: str) -> str:
    """Which digest was found and which one was recorded."""
    recorded = read_record(path.parent)[path.name]["sha256"]
    return f"wrong checksum, SHA-256 {sha256[:12]}... where {recorded[:12]}... was written"


def check_artefact(path: Path) -> Check:
    """`complain_of` a file that is not loaded whole: a large one is read through once for each size and time of it."""
    return complain_of(path, known_digest(path))
