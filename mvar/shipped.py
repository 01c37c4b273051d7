"""Files that users read, edit and copy: `experiments/`, `analysis/`, `slurm/`, `notebooks/`, and how they are loaded.

A file is named by its path, or by its name alone: then it is the one of the repository in an editable install (or in
a submission's snapshot of it), else the copy inside the wheel. The working directory is never looked at by name: a
user's own `experiments/` there is theirs.
"""

import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from mvar.errors import UserError, one_of

PACKAGE = Path(__file__).parent
KINDS = ("experiments", "analysis", "slurm", "notebooks")
SETS = {"experiments": "EXPERIMENT", "analysis": "ANALYSIS"}  # what the Python files of a kind have

T = TypeVar("T")


def repository(package: Path | None = None) -> Path | None:
    """The root of the repository, or of a snapshot of it, that this code is part of; None for an installed wheel.

    Args:
        package: the folder `mvar` of the code that is asked about; None: this very code.
    """
    package = package or PACKAGE
    if (package / "_shipped").is_dir():  # a wheel's alone; some packages leave a pyproject.toml beside it
        return None
    return package.parent if (package.parent / "pyproject.toml").is_file() else None


def folder(kind: str) -> Path:
    """Where the files of a kind lie: in the repository, else in the wheel.

    Raises:
        UserError: a kind that is none of `KINDS`.
    """
    if kind not in KINDS:
        raise one_of("kind", kind, KINDS)
    root = repository()
    return root / kind if root and (root / kind).is_dir() else PACKAGE / "_shipped" / kind


def names(kind: str, suffix: str = ".py") -> list[str]:
    """The files of a kind by their names without suffix, in order."""
    return sorted(path.stem for path in folder(kind).glob(f"[a-z]*{suffix}"))


def files(kind: str) -> list[Path]:
    """Every file of a kind, in order."""
    found = (p for p in sorted(folder(kind).rglob("[a-zA-Z0-9]*.*")) if "__pycache__" not in p.parts)
    return [path for path in found if path.is_file()]


def user_path(text: str) -> Path:
    """A path as a user types it, `~` expanded where there is such a home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # of no such user
        return Path(text)


def find(kind: str, name: str, suffix: str = ".py") -> Path:
    """The file of a name, or of a path (with the suffix, or with a separator in it).

    Raises:
        UserError: no such file; lists the names.
    """
    if "/" in name or name.endswith(suffix):
        path = user_path(name)
        if not path.is_file() or path.suffix != suffix:
            allowed = f"allowed: the path of a {suffix} file, or one of {', '.join(names(kind, suffix))}"
            raise UserError(f"{kind}: no {'file' if not path.is_file() else suffix + ' file'} {name!r}; {allowed}")
        return path
    if name not in names(kind, suffix):
        raise one_of(kind, name, names(kind, suffix))
    return folder(kind) / f"{name}{suffix}"


def read(kind: str, path: Path, what: type[T]) -> T:
    """What a file of a kind sets (`SETS`).

    Raises:
        UserError: as `load`; it sets none, or something else.
    """
    found = getattr(load(path), SETS[kind], None)
    if not isinstance(found, what):
        raise UserError(f"{path}: has no {SETS[kind]}; allowed: a file that sets one, as those of `{kind}/` do")
    return found


@cache
def load(path: Path) -> ModuleType:
    """The module of a file, loaded once, under a name that no import statement can mean.

    Raises:
        UserError: the file raises; says what and where.
    """
    tag = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"mvar_loaded.{path.stem}_{tag}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look there
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise UserError(f"{path}: cannot be loaded ({type(error).__name__}: {error})") from error
    return module
