"""What was made with which plug-ins: kept beside runs and in requests, and held against what is loaded.

A file is known by what it gives, a mixer's name say: it may be called otherwise today than when a run was begun.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mvar import layout
from mvar.config import RunConfig
from mvar.errors import UserError, warn_once
from mvar.files import read_json, write_json
from mvar.plugins import Plugin, giver
from mvar.registries import FIELDS, MIXERS, SOURCES
from mvar.registry import Registry

Key = tuple[str, str]  # the field of a config that names it, and its name: ("mixer", "recent")
SWEEP = "sweep"  # the field of an experiment that a file sets
GIVES = "gives"
TRAINED_WITH = (MIXERS.field, SOURCES.field)


@dataclass(frozen=True)
class Record:
    """Plug-ins by what they gave.

    Args:
        gave: the plug-in of each name.
        older: those of records that do not say what they gave, by their own names.
    """

    gave: Mapping[Key, Plugin] = field(default_factory=dict)
    older: Mapping[str, Plugin] = field(default_factory=dict)

    @classmethod
    def of_document(cls, document: Any) -> "Record":
        """What `document` made; nothing of one that is damaged."""
        gave: dict[Key, Plugin] = {}
        older: dict[str, Plugin] = {}
        try:
            for entry in document:
                plugin = Plugin(**{one.name: entry[one.name] for one in fields(Plugin)})
                if not all(isinstance(value, str) for value in asdict(plugin).values()):
                    return cls()
                keys = [(what, name) for what, names in entry.get(GIVES, {}).items() for name in names]
                gave |= dict.fromkeys(keys, plugin)
                older |= {} if keys else {plugin.name: plugin}
        except (KeyError, TypeError, AttributeError):
            return cls()
        return cls(gave, older)

    def document(self) -> list[dict[str, Any]]:
        """As JSON values: a plug-in each, with what it gave by field."""
        found: dict[Plugin, dict[str, list[str]]] = {plugin: {} for plugin in self.older.values()}
        for (what, name), plugin in self.gave.items():
            found.setdefault(plugin, {}).setdefault(what, []).append(name)
        return [asdict(plugin) | ({GIVES: gives} if gives else {}) for plugin, gives in found.items()]

    def giver(self, key: Key, now: Plugin | None = None) -> Plugin | None:
        """The plug-in that gave a name; of older records the one called as today's, or the only one.

        Args:
            key: the name.
            now: the plug-in that gives it today.
        """
        if key in self.gave:
            return self.gave[key]
        if now and now.name in self.older:
            return self.older[now.name]
        is_only = len(self.older) == 1 and not self.gave and key[0] in TRAINED_WITH
        return next(iter(self.older.values())) if is_only else None

    def givers(self, keys: Iterable[Key]) -> list[Plugin]:
        """Who gave these names, one plug-in a name; of older records all that there are."""
        known = [found for key in keys if (found := self.giver(key))]
        return list(dict.fromkeys(known or self.older.values()))


class PlugInMissing(UserError):
    """A plug-in is not loaded.

    Args:
        told: the message but for what is allowed.
        files: what is allowed, as options of a command.
    """

    def __init__(self, told: str, files: str) -> None:
        super().__init__(told + files)
        calls = "; ".join(f"plugins.load({path.strip()!r})" for path in files.split("--plugin ")[1:])
        self.in_python = f"{self}; in Python: from mvar import plugins; {calls}"


def used_by(configs: Iterable[RunConfig]) -> dict[Key, Plugin]:
    """The loaded plug-ins whose mixers, source and so on some runs have, by these names."""
    chosen = {(found.field, name): giver(found, name) for config in configs for found, name in config.chosen()}
    return {key: plugin for key, plugin in chosen.items() if plugin}


def record(config: RunConfig, run: Path) -> None:
    """Keep, in a run's directory, which plug-ins make it: files, digests, what they give. Nothing where it has none.

    Of weights that are there, what they were trained with stays; what samples or judges them is added.
    """
    if not (used := used_by([config])):
        return
    before = _of_run(run)
    kept = {key: found for key, now in used.items() if (found := before.giver(key, now))}
    whole = {**before.gave, **used, **(kept if (run / layout.MODEL).is_file() else {})}
    named = {plugin.name for plugin in kept.values()}
    older = {name: plugin for name, plugin in before.older.items() if name not in named}
    write_json(run / layout.PLUGINS, {"plugins": Record(whole, older).document()})


def check(config: RunConfig, run: Path, kinds: Collection[Registry[Any]] | None = None) -> None:
    """Refuse to compute with a run whose plug-in is not loaded, or to train it on with another version of that.

    Args:
        config: of the run.
        run: its directory.
        kinds: what is going to be used; None: everything that the run has.

    Raises:
        UserError: says what is missing, from which file that was, and how to go on.
    """
    check_loaded(config, run, kinds)
    before = _of_run(run)
    for key, now in used_by([config]).items():
        was = before.giver(key, now)
        if was and was.sha256 != now.sha256:
            told = was.short if was.name == now.name else str(was)
            changed = f"plug-in {now} is another than the run was begun with ({told})"
            if not (run / layout.MODEL).is_file():
                raise UserError(f"run {run.name}: {changed}; allowed: that file, or remove {run} to train it anew")
            warn_once(f"run {run.name}: {changed}; its weights are of that one")


def check_loaded(config: RunConfig, run: Path, kinds: Collection[Registry[Any]] | None = None) -> None:
    """Refuse a run of which a plug-in is not loaded; as `check`."""
    used = [(found, name) for found, name in config.chosen() if kinds is None or found in kinds]
    if lacking := [(found.field, name) for found, name in used if name not in found]:
        raise _needs(f"run {run.name}", lacking, _of_run(run), "the run was made with")


def check_request(name: str, manifest: Mapping[str, Any]) -> None:
    """Refuse a request that is kept of which a plug-in is not loaded.

    Args:
        name: what was asked for.
        manifest: of it; of one that does not say which plug-ins it has nothing is known.

    Raises:
        UserError: as `check`.
    """
    before = Record.of_document(manifest.get("plugins", []))
    if lacking := [(what, one) for what, one in before.gave if what in FIELDS and one not in FIELDS[what]]:
        raise _needs(name, lacking, before, "it was asked for with")


def _needs(what: str, lacking: Collection[Key], before: Record, made: str) -> UserError:
    needs = ", ".join(f"{where} {name!r}" for where, name in lacking)
    givers = before.givers(lacking)
    files = " ".join(f"--plugin {path}" for path in dict.fromkeys(plugin.path for plugin in givers))
    told = f" ({made} {', '.join(map(str, givers))})" if givers else ""
    return PlugInMissing(f"{what}: needs {needs} of a plug-in{told}; allowed: ", files or "--plugin FILE.py")


def _of_run(run: Path) -> Record:
    """What a run was made with; nothing of a record that is missing or damaged."""
    try:
        return Record.of_document(read_json(run / layout.PLUGINS)["plugins"])
    except (OSError, UserError, KeyError, TypeError):
        return Record()
