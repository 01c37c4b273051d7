"""How long everything that hashes takes: whoever does takes it from `hashlib`, there is no other way in."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SHA256, FILE_DIGEST = hashlib.sha256, hashlib.file_digest


class Clock:
    """Seconds inside of `hashlib` and its objects; calls; files that were hashed whole, by name; other bytes."""

    def __init__(self) -> None:
        self.seconds, self.calls, self.num_bytes = 0.0, 0, 0
        self.files: set[str] = set()

    def timed(self, function):
        def call(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began
                self.calls += 1

        return call

    def sha256(self, data: bytes = b"", **options) -> "Hash":
        self.num_bytes += len(data)
        return Hash(self, self.timed(SHA256)(data, **options))

    def file_digest(self, file, name, **options):
        self.files.add(Path(file.name).name.lstrip("."))
        return self.timed(FILE_DIGEST)(file, name, **options)


class Hash:
    """A hash whose every call is timed."""

    def __init__(self, clock: Clock, own) -> None:
        self._clock, self._own = clock, own

    def update(self, data: bytes) -> None:
        self._clock.num_bytes += len(data)
        self._clock.timed(self._own.update)(data)

    def __getattr__(self, name: str):
        return self._clock.timed(getattr(self._own, name))


@contextmanager
def watched() -> Iterator[Clock]:
    """A clock that runs inside."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashlib, "sha256", clock.sha256)
        patch.setattr(hashlib, "file_digest", clock.file_digest)
        yield clock
