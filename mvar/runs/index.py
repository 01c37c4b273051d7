"""Which stored run a config is, however it is spelled and whatever the run's directory is called.

`RESULTS/.index.json` keeps the keys of every stored config, so that a thousand of them are not parsed anew by each
command. It may be deleted at any time.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mvar import layout
from mvar.config import RunConfig, identity
from mvar.config.schema import Config, DataConfig, EvaluationConfig, TokenizerConfig
from mvar.errors import UserError, warn_once
from mvar.files import digest, read_json, write_json
from mvar.runs.documents import read_or_empty
from mvar.runs.states import DONE

KEPT_FROM = 32  # configs; fewer are parsed in no time
# Sections in which two spellings can name one shared stage.
SECTIONS: dict[str, type[Config]] = {"data": DataConfig, "tokenizer": TokenizerConfig, "evaluation": EvaluationConfig}


@dataclass(frozen=True)
class Entry:
    """One stored config: a run's, or a shared stage's, which has some sections alone."""

    folder: str  # below the results directory, e.g. runs/digits-...
    run_id: str  # that the config has, whatever the folder is called; empty for a stage
    key: str  # `RunConfig.key`; empty for a stage
    sections: Mapping[str, str]  # section -> digest of its canonical values

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.rpartition("/")[2]


class RunIndex:
    """Every stored config of a results directory that can be read; damaged ones are left out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        kept = self._kept()
        entries: dict[str, Any] = {}
        for path in _config_files(root):
            folder = path.parent.relative_to(root).as_posix()
            found = path.stat()
            state = [found.st_mtime_ns, found.st_size]
            entry = kept.get(folder)
            entries[folder] = entry if entry and entry["state"] == state else {"state": state, **_describe(path)}
        if entries != kept and len(entries) >= KEPT_FROM:
            with suppress(OSError):  # results of another user: read anew each time
                write_json(root / layout.INDEX, {"schema": _schema(), "entries": entries})
        self._entries = [
            Entry(folder, e["run_id"], e["key"], e["sections"]) for folder, e in entries.items() if "key" in e
        ]
        self._unreadable = [
            folder for folder, e in entries.items() if "key" not in e and folder.startswith(f"{layout.RUNS}/")
        ]

    def _kept(self) -> dict[str, Any]:
        with suppress(OSError, UserError, TypeError, KeyError, AttributeError):
            document = read_json(self._root / layout.INDEX)
            entries = document["entries"]
            if document["schema"] == _schema() and all(len(e["state"]) == 2 for e in entries.values()):
                return entries
        return {}

    @property
    def unreadable(self) -> list[str]:
        """Folders of runs whose config cannot be read, below the results directory."""
        return self._unreadable

    def runs(self, key: str) -> list[Entry]:
        """The runs of a key: what is finished first, then the oldest."""
        found = [entry for entry in self._entries if entry.key == key and key and self._is_there(entry)]
        return sorted(found, key=self._rank) if len(found) > 1 else found

    def run(self, key: str) -> Entry | None:
        """The run of a key; where several directories hold it, a line says which one counts."""
        found = self.runs(key)
        if len(found) > 1:
            names = ", ".join(entry.name for entry in found)
            warn_once(f"{names}: these directories hold one and the same run; {found[0].name} is used")
        return found[0] if found else None

    def id_of(self, name: str) -> str | None:
        """The id of the config that a run's directory holds; None where it has none, or one that cannot be read."""
        return next((e.run_id or None for e in self._entries if e.folder == f"{layout.RUNS}/{name}"), None)

    def by_id(self, run_id: str) -> list[Entry]:
        """The runs whose config has an id, whatever their directories are called."""
        return [entry for entry in self._entries if entry.run_id == run_id and run_id]

    def spelled(self, canonical: Mapping[str, Any], *sections: str) -> Path | None:
        """The folder of the first stored config with equal canonical values of all of the sections."""
        wanted = {name: digest(canonical[name], 16) for name in sections}
        for entry in self._entries:
            if all(entry.sections.get(name) == value for name, value in wanted.items()) and self._is_there(entry):
                return self._root / entry.folder
        return None

    def _is_there(self, entry: Entry) -> bool:
        """Whether the folder was not removed after the index was made."""
        return (self._root / entry.folder / layout.CONFIG).is_file()

    def _rank(self, entry: Entry) -> tuple[bool, float]:
        folder = self._root / entry.folder
        try:
            done = read_or_empty(folder / layout.STATUS).get("state") == DONE
        except UserError:
            done = False
        began = folder / layout.TOKENIZER_USED  # written once, when the run began
        times = [path.stat().st_mtime for path in (began, folder / layout.CONFIG) if path.is_file()]
        return not done, times[0] if times else 0.0


@cache
def _schema() -> str:
    return digest([RunConfig.model_json_schema(), 1])


def _config_files(root: Path) -> Iterator[Path]:
    for kind in (layout.RUNS, layout.STAGES):
        yield from sorted(root.glob(f"{kind}/*/{layout.CONFIG}"))


def _describe(path: Path) -> dict[str, Any]:
    """Keys of a stored config; nothing of one that cannot be read."""
    from mvar.config import stored_config

    try:
        document = json.loads(path.read_bytes())
        if path.parent.parent.name == layout.STAGES:
            return {"run_id": "", "key": "", "sections": _sections({"model": {}, **document})}
        stored = stored_config(document)
        if stored.unknown:  # of a newer version: it is no config that this one could ask for
            return {"run_id": "", "key": "", "sections": {}}
        return {
            "run_id": stored.config.run_id,
            "key": stored.config.key,
            "sections": _sections(stored.config.model_dump(mode="json")),
        }
    except (OSError, ValueError, UserError, AttributeError, KeyError, TypeError, RecursionError):
        return {}


def _sections(values: Mapping[str, Any]) -> dict[str, str]:
    canonical = identity.canonical(RunConfig, values)
    return {name: digest(canonical[name], 16) for name in SECTIONS if name in canonical}
