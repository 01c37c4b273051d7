"""Files of a user's own that are loaded before any config is read: mixers, data sources, metrics and the like.

Named by `--plugin FILE.py`, by `plugins = [...]` in `mvar.toml` of the working directory, or by an installed package's
entry point in the group `mvar.plugins`. All of them run code, so only commands that compute load them. A worker and a
job load the very files of the command that started them, by their digests.
"""

import json
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from mvar import layout, registry, shipped
from mvar.errors import UserError, one_of, quoted, say, warn
from mvar.files import file_digest, read_json
from mvar.registries import FIELDS, KINDS, SET, SET_CONTRACTS

FILE, GROUP, VARIABLE = "mvar.toml", "mvar.plugins", "MVAR_PLUGINS"
T = TypeVar("T")
TOML_FIELDS = ("plugins",)  # of mvar.toml
SHOWN = 12  # digits of a digest
SET_NAMES = tuple(shipped.SETS.values())


@dataclass(frozen=True)
class Plugin:
    """One that is loaded."""

    name: str  # the file's, or the entry point's
    path: str  # of the file
    sha256: str
    entry: str = ""  # `module` or `module:name` of an entry point, which is loaded by that

    @property
    def short(self) -> str:
        """Its digest, as it is shown."""
        return f"sha256 {self.sha256[:SHOWN]}"

    def __str__(self) -> str:
        return f"{self.name} ({self.path}, {self.short})"


_loaded: dict[str, tuple[Plugin, ModuleType]] = {}


def loaded() -> list[Plugin]:
    """Those of this process, in the order in which they were loaded."""
    return [plugin for plugin, _ in _loaded.values()]


def set_by(kind: str, what: type[T]) -> list[T]:
    """What their files set of a kind (`mvar.shipped.SETS`): experiments, analyses."""
    found = (getattr(module, shipped.SETS[kind], None) for _, module in _loaded.values())
    return [one for one in found if isinstance(one, what)]


def setter(kind: str, name: str) -> Plugin | None:
    """The plug-in whose file sets the experiment or the analysis of a name."""
    every = ((plugin, getattr(module, shipped.SETS[kind], None)) for plugin, module in _loaded.values())
    return next((plugin for plugin, one in every if getattr(one, "name", None) == name), None)


def giver(kind: registry.Registry[Any], name: str) -> Plugin | None:
    """The plug-in that has registered a name."""
    return _loaded.get(kind.owners.get(name, ""), (None, None))[0]


def blamed(error: BaseException) -> str:
    """What the code of a plug-in has raised, as one line with its file and line; empty where none took part in it."""
    own = {plugin.path: plugin for plugin in loaded()}
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if not (of_plugins := [(code, line) for code, line in frames if code.co_filename in own]):
        return ""
    (code, line), (innermost, inner_line) = of_plugins[-1], frames[-1]
    plugin = own[code.co_filename]
    classes = [code.co_qualname.partition(".")[0] for code, _ in reversed(of_plugins)]
    given = [(kind.field, name) for kind in KINDS.values() for name in kind.own if giver(kind, name) == plugin]
    named = [f"{what} {name!r}" for what, name in given if FIELDS[what].own[name].__name__ in classes]
    where = f"{plugin.path}, line {line}"
    if innermost is not code:
        where += f"; raised in {Path(innermost.co_filename).name}, line {inner_line}"
    return f"{(named or [f'plug-in {plugin.name}'])[0]} raises {type(error).__name__}: {error} ({where})"


def begin(files: Sequence[str], everything: bool = True, sweeps: Sequence[str] = ()) -> list[Plugin]:
    """Load what a command that computes is to know, and say what that is; processes that it starts load the same.

    Args:
        files: of `--plugin`.
        everything: also what installed packages and mvar.toml name.
        sweeps: files whose experiments are asked for.

    Raises:
        UserError: as `load`; a mistake in mvar.toml, which is named.
    """
    forget_all()
    for point in metadata.entry_points(group=GROUP) if everything else ():
        load_entry(point.name, point.value)
    for path in [*(_of_toml(Path(FILE)) if everything else ()), *files]:
        load(path)
    for plugin in loaded() if everything else ():  # `mvar check` says it in its own words
        if not _gives(plugin):
            warn(f"plug-in {plugin} gives nothing; it has no @mvar.register, and sets no {' or '.join(SET_NAMES)}")
    for path in sweeps:
        load(path)
    if _loaded:
        say("plug-ins: " + ", ".join(map(str, loaded())))
    return loaded()


def _gives(plugin: Plugin) -> bool:
    """Whether a plug-in adds anything that can be chosen or asked for."""
    registers = any(plugin.name in kind.owners.values() for kind in KINDS.values())
    return registers or any(hasattr(_loaded[plugin.name][1], name) for name in SET_NAMES)


def begin_child() -> None:
    """Load, in a process that a command has started, what that command has loaded.

    Raises:
        UserError: as `load`; a file that has changed since.
    """
    for values in json.loads(os.environ.get(VARIABLE) or "[]"):
        _load_again(Plugin(**values))


def begin_job(code: Path) -> None:
    """Load, in a job, what the submission was made with: the files lie in its snapshot of the code.

    Args:
        code: the snapshot's folder.
    """
    described = code / layout.SNAPSHOT
    for values in read_json(described).get("plugins", []) if described.is_file() else []:
        plugin = Plugin(**values)
        _load_again(plugin if plugin.entry else Plugin(plugin.name, str(code / plugin.path), plugin.sha256))


def _load_again(plugin: Plugin) -> None:
    found = load_entry(plugin.name, plugin.entry) if plugin.entry else load(plugin.path)
    if found.sha256 != plugin.sha256:
        raise UserError(f"plugin: {found} has changed since the command began; allowed: start the command again")


def _of_toml(path: Path) -> list[str]:
    """The files that mvar.toml names, from its own folder."""
    if not path.is_file():
        return []
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}; allowed: TOML, e.g. plugins = ['my_mixer.py']") from None
    for name in values:
        if name not in TOML_FIELDS:
            raise one_of(f"{path}: field", name, TOML_FIELDS)
    files = values.get("plugins", [])
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise UserError(f"{path}: plugins: {files!r:.200}; allowed: a list of files, e.g. ['my_mixer.py']")
    return [str(path.parent / shipped.user_path(file)) for file in files]


def load(given: str) -> Plugin:
    """Load a file, once; it is known by its own name, which no other plug-in may have.

    Raises:
        UserError: no such file, another plug-in of that name, a file that raises or needs a missing package.
    """
    path = shipped.user_path(given)
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"plugin: no Python file {given!r}; allowed: the path of a .py file")
    plugin = Plugin(path.stem, str(path.absolute()), file_digest(path))
    if _is_loaded(plugin):
        return plugin

    def act() -> ModuleType:
        module = shipped.load(path.absolute())
        _check_set(plugin, module)
        return module

    return _keep(plugin, _guarded(plugin, act))


def load_entry(name: str, value: str) -> Plugin:
    """Load what an installed package's entry point names; as `load`."""
    if name in _loaded and _loaded[name][0].entry == value:
        return _loaded[name][0]
    point = metadata.EntryPoint(name, value, GROUP)
    found = _guarded(Plugin(name, value, "", value), point.load)
    module = found if isinstance(found, ModuleType) else import_module(point.module)
    path = str(module.__file__)
    plugin = Plugin(name, path, file_digest(Path(path)), value)
    if _is_loaded(plugin):
        return plugin
    _guarded(plugin, lambda: _check_set(plugin, module))
    return _keep(plugin, module)


def _check_set(plugin: Plugin, module: ModuleType) -> None:
    """Refuse what a file sets that is no experiment or analysis, or has the name of another one."""
    for kind, what in shipped.SETS.items():
        if not hasattr(module, what):
            continue
        found = getattr(module, what)
        if not isinstance(found, registry.loaded(SET_CONTRACTS[what])):
            raise UserError(f"{what} is {quoted(found, 60)}; allowed: {SET[what.lower()]}")
        is_ours = Path(plugin.path).resolve().parent == shipped.folder(kind).resolve()
        other = setter(kind, found.name)
        if found.name in shipped.names(kind) and not is_ours:
            raise UserError(
                f"its {what} is called {found.name!r}, as one of ours; allowed: a name of its own, by which it is told "
                "from that"
            )
        if other:
            raise UserError(f"its {what} is called {found.name!r}, as that of {other}; allowed: a name for each")


def _is_loaded(plugin: Plugin) -> bool:
    """Whether the very same is loaded.

    Raises:
        UserError: another one has the name.
    """
    there = _loaded.get(plugin.name)
    if there and there[0].sha256 != plugin.sha256:
        raise UserError(f"plugin: {there[0]} and {plugin} have one name; allowed: a name for each")
    return there is not None


def _guarded(plugin: Plugin, act: Callable[[], T]) -> T:
    """What loading gives; what goes wrong in it is one line, and leaves nothing registered."""
    try:
        with registry.owned_by(plugin.name, plugin.path):
            return act()
    except ModuleNotFoundError as error:
        why = _needs(error)
    except UserError as error:
        cause = error.__cause__
        why = _needs(cause) if isinstance(cause, ModuleNotFoundError) else str(error)
    except Exception as error:
        why = f"cannot be loaded ({type(error).__name__}: {error})"
    forget(plugin.name)
    raise UserError(f"plugin {plugin.path}: {why.removeprefix(f'{plugin.path}: ')}")


def _needs(error: ModuleNotFoundError) -> str:
    return f"needs the package {error.name!r}, which is not installed; allowed: install it"


def _keep(plugin: Plugin, module: ModuleType) -> Plugin:
    _loaded[plugin.name] = (plugin, module)
    os.environ[VARIABLE] = json.dumps([asdict(one) for one in loaded()])
    return plugin


def forget(name: str) -> None:
    """Unload one, where it is loaded: nothing that it registered stays."""
    plugin, module = _loaded.pop(name, (None, None))
    shipped.load.cache_clear()
    if plugin and module:
        sys.modules.pop(module.__name__, None)  # that it registers anew where it is loaded again
    for kind in KINDS.values():
        for own in [own for own, owner in kind.owners.items() if owner == name]:
            del kind.own[own], kind.owners[own]


def forget_all() -> None:
    """Unload everything: in a process that runs several commands each loads its own."""
    for name in list(_loaded):
        forget(name)
    os.environ.pop(VARIABLE, None)
