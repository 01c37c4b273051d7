"""What was read from files, kept beside the report and used again while the files have not changed.

`report/cache.json` may be deleted at any time; a damaged or older one is ignored. A file counts as unchanged while its
time of modification and its size are the same.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mvar.files import atomic_write

VERSION = 4  # of what the readers return; another one is read anew


class ReadCache:
    """Values by key, each with the state of the files that it was read from. Without a path nothing is kept."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.num_read = 0  # values that had to be read
        self._old: dict[str, Any] = {}
        self._new: dict[str, Any] = {}
        try:
            document = json.loads(path.read_bytes()) if path else {}
            if document.get("version") == VERSION:
                self._old = {key: entry for key, entry in document["values"].items() if len(entry) == 2}
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            pass  # not there, or damaged: reading anew mends it

    def value(self, key: str, files: Sequence[Path], read: Callable[[], Any]) -> Any:
        """What `read` returns (JSON values), or what it returned while the files were as they are now."""
        now = [_state(path) for path in files]
        entry = self._new.get(key) or self._old.get(key)
        if entry is None or entry[0] != now:
            self.num_read += 1
            entry = [now, read()]
        self._new[key] = entry
        return entry[1]

    def save(self) -> None:
        """Keep what was asked for this time, and nothing of runs that are gone."""
        if self.path is None or (self.num_read == 0 and self._new.keys() == self._old.keys()):
            return
        with atomic_write(self.path) as file:
            file.write(json.dumps({"version": VERSION, "values": self._new}).encode())


def _state(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]
