"""A file of equal rows that grows, survives a kill at any moment, and is gone on with: the one writer of such files.

While it grows there are the rows themselves, without their final name, and a record beside them: what the rows are of,
how many are on the disk, and their SHA-256. The record is never ahead of the rows, not even after a power failure;
rows after it are cut off, and rows that do not have its digest are made anew.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mvar.errors import UserError, warn
from mvar.files import naming, own_file, read_json, remember_digest, write_json

RECORD_EVERY_S = 2.0  # what a kill can cost; each record waits for the disk
BLOCK_BYTES = 1 << 20


class Rows:
    """Appends rows to a file that is not full yet.

    Args:
        partial: where the rows grow.
        record: where is noted how far they are.
        plan: what they are of, as JSON values: rows of another plan are made anew.
        row_bytes: size of one row.
        final: the name that `finish` gives them; None: they are only in passing.
        header: bytes before the first row.
        every_s: seconds between records; 0: one an append; None: `RECORD_EVERY_S`.
        extra: further values of the record, with those of a beginning; `append` changes them.
    """

    def __init__(
        self,
        partial: Path,
        record: Path,
        plan: Mapping[str, Any],
        row_bytes: int,
        *,
        final: Path | None = None,
        header: bytes = b"",
        every_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.partial, self.final = partial, final
        self._record, self._plan, self._row_bytes, self._header = record, as_json(plan), row_bytes, header
        self._every_s = RECORD_EVERY_S if every_s is None else every_s
        self._recorded_at = time.monotonic()
        self.extra: dict[str, Any] = dict(extra or {})
        partial.parent.mkdir(parents=True, exist_ok=True)
        if final and not partial.exists() and final.exists():
            os.replace(final, partial)  # killed between the last two steps; or of another plan, then cut to nothing
        self._hash = hashlib.sha256()
        self.done = self._found()
        self._file = open(own_file(partial), "r+b" if self.done else "wb")  # noqa: SIM115  open as long as this object
        if self.done:
            self._file.truncate(self._size(self.done))
            self._file.seek(0, os.SEEK_END)
        else:
            self._hash = hashlib.sha256(header)
            if header:
                self._write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, data: bytes, is_last: bool = False) -> None:
        """Add whole rows. They are on the disk once a record says so: at the latest with the last ones."""
        count, rest = divmod(len(data), self._row_bytes)
        if rest:
            raise ValueError(f"{len(data)} bytes are no whole rows of {self._row_bytes}")
        self._write(data)
        self._hash.update(data)
        self.done += count
        if is_last or time.monotonic() - self._recorded_at >= self._every_s:
            self.record()

    @property
    def sha256(self) -> str:
        """Of all rows so far, and the header."""
        return self._hash.hexdigest()

    def record(self) -> None:
        """Note what is there, once it is on the disk."""
        with naming(self.partial):
            os.fsync(self._file.fileno())
        values = {"plan": self._plan, "done": self.done, "sha256": self.sha256, **self.extra}
        write_json(self._record, values)
        self._recorded_at = time.monotonic()

    def finish(self) -> str:
        """Give the file its final name; returns its SHA-256. The record stays until `forget`."""
        assert self.final
        self.record()
        self._file.close()
        os.replace(self.partial, self.final)
        remember_digest(self.final, self.sha256)
        return self.sha256

    def forget(self) -> None:
        """Remove what was only for going on: of a file that is finished, or whose rows stand elsewhere by now."""
        self._file.close()
        self.partial.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        with naming(self.partial):
            self._file.write(data)
            self._file.flush()

    def _size(self, rows: int) -> int:
        return len(self._header) + rows * self._row_bytes

    def _found(self) -> int:
        """Rows that a killed writer of the same plan has left and that have their digest; else 0."""
        with suppress(OSError, UserError, KeyError, AttributeError, TypeError, ValueError):
            record = _of_any_version(read_json(self._record))
            done = int(record["done"])
            if record.get("plan", self._plan) != self._plan or done < 0:
                return 0
            size = self.partial.stat().st_size if self.partial.is_file() else 0
            if size < self._size(done) or not self._has_digest(done, record.get("sha256")):
                warn(f"{self.partial}: the {done} rows that are recorded are missing or damaged; they are made anew")
                return 0
            self.extra |= {name: record[name] for name in self.extra.keys() & record.keys()}
            return done
        return 0

    def _has_digest(self, done: int, sha256: str | None) -> bool:
        """Read the rows into the running digest; a record of the first version has none to compare with."""
        found, left = hashlib.sha256(), self._size(done)
        with open(self.partial, "rb") as file:
            while left and (block := file.read(min(left, BLOCK_BYTES))):
                found.update(block)
                left -= len(block)
        self._hash = found
        return sha256 in (None, found.hexdigest())


def shortfall(partial: Path, record: Path, row_bytes: int | None, header_bytes: int = 0) -> str:
    """What is wrong with a record of rows, by their size alone: a line; empty where they are as it says.

    Args:
        partial: the rows.
        record: what says how many there are.
        row_bytes: size of one row; None where it is not known: then only a file that is missing is told.
        header_bytes: before the first row.
    """
    try:
        done = int(_of_any_version(read_json(record))["done"])
    except (OSError, UserError, KeyError, AttributeError, TypeError, ValueError, OverflowError):
        return "not as this version writes it"
    try:
        size = partial.stat().st_size
    except OSError:
        return f"{partial.name}, whose {done} rows it tells of, is not there" if done else ""
    wanted = header_bytes + done * (row_bytes or 0)
    if size < wanted:
        return f"{partial.name} has {size:,} bytes where its {done} rows have {wanted:,}"
    return ""


def as_json(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as it comes back from a file: tuples are lists there."""
    return json.loads(json.dumps(plan))


def _of_any_version(record: dict[str, Any]) -> dict[str, Any]:
    """A record as this version writes it: the first one had the plan's values beside the number of rows."""
    if "rows_done" not in record:
        return record
    plan = {name: value for name, value in record.items() if name not in ("rows_done", "schema_version")}
    return {"plan": plan, "done": record["rows_done"]}
