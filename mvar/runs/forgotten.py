"""Requests that are taken back: their manifests are set aside, their runs stay."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from mvar import layout
from mvar.errors import UserError, one_of
from mvar.runs.documents import read_document
from mvar.runs.store import Store


@dataclass(frozen=True)
class Forgotten:
    """A request that was taken back."""

    name: str  # of its manifest, without the suffix
    path: Path  # where that is now
    manifest: dict[str, Any]  # empty where it is damaged, or of another version
    problem: str  # what is wrong with it then

    @property
    def run_ids(self) -> list[str]:
        """The runs that it asked for."""
        cells = self.manifest.get("cells", [])
        return list(dict.fromkeys(run_id for cell in cells for run_id in cell["run_ids"]))

    @property
    def seeds(self) -> list[int]:
        """The seeds of all commands that asked for it."""
        return self.manifest.get("seeds", [])


def forget(store: Store, name: str) -> list[Forgotten]:
    """Take back a request, or all those of a sweep. No run is touched.

    Args:
        store: the results.
        name: of a manifest, or of a sweep.

    Raises:
        UserError: nothing of that name was asked for; names what was.
    """
    _named(store, name)  # before a lock is made where there is nothing to hold
    with FileLock(store.root / layout.SWEEPS / layout.LOCK):
        return [_set_aside(path) for path in _named(store, name)]


def _named(store: Store, name: str) -> list[Path]:
    """The manifest of a name; else those of a sweep of that name."""
    own = store.manifest_path(name.removesuffix(".json"))
    there = sorted(own.parent.glob("*.json")) if "/" not in name else []
    found = [own] if own in there else [path for path in there if _read(path)[0].get("sweep") == name]
    if found:
        return found
    every = [path.stem for path in sorted((store.root / layout.SWEEPS).glob("*.json"))]
    if not every:
        raise UserError(f"sweep: nothing was asked for in {store.root}, so {name!r:.200} cannot be forgotten")
    raise one_of("sweep", name, every)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """A manifest, and what is wrong with it."""
    try:
        return read_document(path), ""
    except UserError as error:
        return {}, str(error)


def _set_aside(path: Path) -> Forgotten:
    """Move a manifest to where nobody looks for one. The caller holds the lock."""
    folder = path.parent / layout.FORGOTTEN
    folder.mkdir(exist_ok=True)
    aside, number = folder / path.name, 1
    while os.path.lexists(aside):
        number += 1
        aside = folder / f"{path.stem}-{number}.json"
    manifest, problem = _read(path)
    os.replace(path, aside)
    return Forgotten(path.stem, aside, manifest, problem)
