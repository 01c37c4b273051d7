"""A copy of the code as it is when a sweep is submitted: a job that waits for days runs that, not what came after."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from mvar.files import digest, file_digest, write_json

ROOT = Path(__file__).parents[1]
PACKAGES = ("mvar", "experiments", "slurm", "analysis")
WANTED = (*PACKAGES, "pyproject.toml")


def take(folder: Path) -> Path:
    """Copy the code into `folder/<id>`, once for each state of it; returns that directory.

    Tracked files as they are in the working tree, and new ones that git does not ignore; without git the installed
    packages. `snapshot.json` holds commit, whether files differ from it, and `diff.patch` how.
    """
    files = _files()
    contents = {str(path): file_digest(ROOT / path) for path in files}
    commit = (_git("rev-parse", "HEAD") or "").strip() or None
    snapshot = folder / digest([commit, contents], 16)
    if snapshot.is_dir():
        return snapshot
    folder.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(dir=folder, prefix=".taking-"))
    try:
        for path in files:
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, copy / path)
        diff = (_git("diff", "HEAD", "--", *WANTED) or "") if commit else ""
        new = (_git("ls-files", "--others", "--exclude-standard", "--", *WANTED) or "").splitlines() if commit else []
        (copy / "diff.patch").write_text(diff)
        write_json(copy / "snapshot.json", {"commit": commit, "dirty": bool(diff or new) if commit else None})
        copy.chmod(0o755)  # mkdtemp makes 0700
        os.rename(copy, snapshot)
    except OSError:
        shutil.rmtree(copy, ignore_errors=True)
        if not snapshot.is_dir():  # somebody else has just made the same one
            raise
    return snapshot


def _files() -> list[Path]:
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *WANTED)
    if listed is not None:
        names = [Path(name) for name in listed.split("\0") if name]
    else:
        names = [p.relative_to(ROOT) for package in PACKAGES for p in (ROOT / package).rglob("*")]
    return sorted(p for p in set(names) if (ROOT / p).is_file() and "__pycache__" not in p.parts)


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
