"""A copy of the code as it is when a sweep is submitted: a job that waits for days runs that, not what came after."""

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path

from mvar import layout, shipped
from mvar.cluster.profile_files import check_owner
from mvar.errors import UserError, warn
from mvar.files import STRANGE_AGE_S, digest, file_digest, read_json, write_json
from mvar.plugins import Plugin

ROOT = shipped.PACKAGE.parent
# Not slurm/: a site's profiles may hold what nobody else is to read, and jobs need none.
WANTED = ("mvar", "experiments", "analysis", "pyproject.toml")
OWN = (layout.SNAPSHOT, layout.DIFF)  # of a snapshot itself
# Names of files, and folders, that hold what nobody else is to have; whatever git says of them.
SECRETS = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
    "*.gpg", "*.asc", "id_*", "*_rsa", "*_ed25519", "*_ecdsa", "*_dsa", ".netrc", "_netrc", ".pgpass", ".npmrc",
    ".pypirc", ".htpasswd", ".git-credentials", "credentials", "credentials.*", "secrets", "secrets.*", ".ssh", ".aws",
    ".gnupg", ".kube", ".docker",
)  # fmt: skip


def take(folder: Path, plugins: Sequence[Plugin] = ()) -> Path:
    """Copy the code, and the user's plug-ins, into `folder/<id>`, once for each state of it; returns that directory.

    Tracked files as they are in the working tree, and new ones that git does not ignore; without git all files of the
    same folders; never keys and the like, what `.mvarignore` lists, or what a link takes from elsewhere.
    `snapshot.json` holds commit, whether files differ from it, and the files' digest; `diff.patch` how they differ. A
    copy that is there is used again if its files are those of now; one that was changed is put aside.

    Raises:
        UserError: the copy that is there belongs to another user, or others may write it.
    """
    files = {str(path): ROOT / path for path in _files()}
    files |= {_place(plugin): Path(plugin.path) for plugin in plugins if not plugin.entry}
    contents = {name: file_digest(path) for name, path in files.items()}
    commit = (_git("rev-parse", "HEAD") or "").strip() or None
    entries = [asdict(plugin) for plugin in plugins if plugin.entry]  # installed packages: of the environment
    snapshot = folder / digest([commit, contents, *entries], 16)
    if snapshot.exists() or snapshot.is_symlink():
        changed = _changed(snapshot, contents)
        if not changed:
            return snapshot
        aside = snapshot.with_name(f"{snapshot.name}.changed-{secrets.token_hex(4)}")
        snapshot.rename(aside)
        warn(f"code: {snapshot} was changed after it was made ({changed}); it is put aside as {aside.name}, made anew")
    _make_folder(folder)
    copy = Path(tempfile.mkdtemp(dir=folder, prefix=".taking-"))
    try:
        _copy(files, copy, commit)
        listed = [replace(p, path=p.path if p.entry else _place(p)) for p in plugins]
        described = {"commit": commit, "dirty": _is_dirty(copy) if commit else None, "sha256": digest(contents, 64)}
        described |= {"plugins": [asdict(plugin) for plugin in listed]} if listed else {}
        write_json(copy / layout.SNAPSHOT, described)
        _open_to_read(copy)
        os.rename(copy, snapshot)
    except OSError:
        shutil.rmtree(copy, ignore_errors=True)
        if not snapshot.is_dir() or _changed(snapshot, contents):  # else somebody else has just made the same one
            raise
    return snapshot


def _make_folder(folder: Path) -> None:
    """Where snapshots are: nobody else may put another one in the place of one."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # whatever the umask
    check_owner(folder, "code", f"move it away: mv {folder} {folder}.old")
    for half in folder.glob(".taking-*"):  # of a process that was killed
        if time.time() - half.stat().st_mtime > STRANGE_AGE_S:
            shutil.rmtree(half, ignore_errors=True)


def _place(plugin: Plugin) -> str:
    """Where a user's file lies in a snapshot."""
    return f"plugins/{plugin.name}.py"


def _copy(files: Mapping[str, Path], copy: Path, commit: str | None) -> None:
    for name, path in files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy / name)
    (copy / layout.DIFF).write_text(_difference() if commit else "")


def _is_dirty(copy: Path) -> bool:
    """Whether the code differs from its commit."""
    new = (_git("ls-files", "--others", "--exclude-standard", "--", *WANTED) or "").splitlines()
    return bool(new or (copy / layout.DIFF).read_text())


def _open_to_read(copy: Path) -> None:
    """Whatever the umask: others may read it and not write it."""
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _difference() -> str:
    """How the tracked files that are copied, or were deleted, differ from the commit."""
    names = (_git("diff", "--name-only", "-z", "--no-renames", "HEAD", "--", *WANTED) or "").split("\0")
    ignored = _ignored_patterns()
    kept = [name for name in names if name and not _is_left_out(Path(name), ignored)]
    return (_git("--literal-pathspecs", "diff", "--no-renames", "HEAD", "--", *kept) or "") if kept else ""


def _changed(snapshot: Path, contents: dict[str, str]) -> str:
    """The first file of a snapshot that is not as it was made, more or less; empty where none is.

    Raises:
        UserError: another user's, or others may write it.
    """
    remedy = f"move it away: mv {snapshot} {snapshot}.old"
    check_owner(snapshot.parent, "code", remedy)
    check_owner(snapshot, "code", remedy)
    if snapshot.is_symlink():
        return "a link"
    found = {}
    for path in sorted(snapshot.rglob("*")):
        check_owner(path, "code", remedy)
        name = path.relative_to(snapshot)
        if path.is_symlink():
            return f"{name} is a link"
        if path.is_file() and "__pycache__" not in name.parts and str(name) not in OWN:
            found[str(name)] = file_digest(path)
    if differing := sorted(n for n in found.keys() | contents.keys() if found.get(n) != contents.get(n)):
        return differing[0]
    try:
        stored = read_json(snapshot / layout.SNAPSHOT)
        kept = stored.get("sha256", digest(contents, 64))  # an earlier version did not store it
    except (OSError, UserError, AttributeError):
        return layout.SNAPSHOT
    return "" if kept == digest(contents, 64) else layout.SNAPSHOT


def _files() -> list[Path]:
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *WANTED)
    is_wheel = listed is None and (ROOT / "mvar" / "_shipped").is_dir()
    if listed is not None:
        names = [Path(name) for name in listed.split("\0") if name]
    else:
        # beside an installed wheel, folders of the same names are somebody else's
        wanted = WANTED if shipped.repository(ROOT / "mvar") else ("mvar",)
        names = [p.relative_to(ROOT) for name in wanted for p in (ROOT / name, *(ROOT / name).rglob("*"))]
    ignored, root = _ignored_patterns(), ROOT.resolve()
    found = []
    for path in sorted(set(names)):
        if "__pycache__" in path.parts or _is_left_out(path, ignored) or not (ROOT / path).is_file():
            continue
        real = (ROOT / path).resolve()  # of a link, or below one
        is_own = real.is_relative_to(root) and not _is_left_out(real.relative_to(root), ignored)
        if is_own or is_wheel:  # of a wheel some installers link every file to their cache
            found.append(path)
    return found


def _ignored_patterns() -> list[str]:
    """The lines of `.mvarignore`."""
    try:
        lines = (ROOT / ".mvarignore").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _is_left_out(path: Path, ignored: list[str]) -> bool:
    """Whether a file, by its path in the code, is a key or the like, or the last pattern that fits it ignores it."""
    if any(fnmatch(part.lower(), pattern) for part in path.parts for pattern in SECRETS) and path.suffix != ".py":
        return True
    left_out = False
    for pattern in ignored:
        if _fits(path, pattern.removeprefix("!")):
            left_out = not pattern.startswith("!")
    return left_out


def _fits(path: Path, pattern: str) -> bool:
    """As in `.gitignore`: a pattern with a slash is of the whole path, others of any part; `dir/` of folders only.

    One thing is simpler: `*` also stands for slashes.
    """
    folders_only, pattern = pattern.endswith("/"), pattern.rstrip("/")
    heads = [*reversed(path.parents)][1:] + ([] if folders_only else [path])  # the folders above it, and itself
    if "/" in pattern:
        whole = pattern.removeprefix("/")
        wholes = (whole, whole.removeprefix("**/"))
        return any(fnmatch(str(head), one) for head in heads for one in wholes)
    return any(fnmatch(head.name, pattern) for head in heads)


def _git(*arguments: str) -> str | None:
    """Output of git in the code's own repository; None where the code is not in one."""
    if not (ROOT / ".git").exists():  # an enclosing repository, e.g. of dotfiles, is not the code's
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
