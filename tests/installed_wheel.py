"""The wheel in an environment of its own, and beside it a user's own folders that nothing of it may touch."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = ("experiments", "analysis", "slurm")  # names that a user's folder may well have, too
# In every process of the environment: at its end it notes what it was started with and where its modules came from.
WITNESS = """
import atexit, json, os, sys

def _note():
    files = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
    seen = {"words": sys.orig_argv, "files": sorted({f for f in files if isinstance(f, str)})}
    with open(os.path.join(FOLDER, f"{os.getpid()}.json"), "w") as file:
        json.dump(seen, file)

atexit.register(_note)
"""


def build(folder: Path) -> Path:
    """The wheel of this checkout, by way of its source distribution; built from a copy: a build leaves files."""
    source = folder / "source"
    source.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    for name in names or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if ".venv" not in p.parts]:
        if name and not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sdist]
    subprocess.run(command, check=True)
    (found,) = folder.glob("*.whl")
    return found


def strangers(folder: Path) -> None:
    """A user's own packages of these names, with scripts of the names of ours; each raises when it is loaded."""
    for kind in OWN:
        (folder / kind).mkdir(parents=True)
        (folder / kind / "__init__.py").write_text(f'raise RuntimeError("the own {kind}")\n')
        for path in (ROOT / kind).glob("*"):
            text = "a stranger's, and no TOML\n" if path.suffix == ".toml" else 'raise RuntimeError("a stranger")\n'
            if path.suffix in {".py", ".toml"}:
                (folder / kind / path.name).write_text(text)


class Installed:
    """The wheel, installed. Its dependencies are those of this environment; the package is the wheel's alone."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.home, self.seen = folder / "venv", folder / "seen"
        venv.create(self.home, symlinks=True)
        self.seen.mkdir()
        (self.site,) = self.home.glob("lib/python*/site-packages")
        zipfile.ZipFile(wheel).extractall(self.site)
        (self.site / "below.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
        (self.site / "witness.py").write_text(WITNESS.replace("FOLDER", repr(str(self.seen))))
        (self.site / "witness.pth").write_text("import witness\n")

    def python(self, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Its Python, started in a folder."""
        return subprocess.run(
            [self.home / "bin/python", *words],
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )

    def mvar(self, cwd: Path, *words: str) -> str:
        """What a command that must end well says. By -m the folder itself is on the path: the hardest way to start."""
        done = self.python(cwd, "-m", "mvar.cli", *words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def processes(self) -> list[dict[str, list[str]]]:
        """Every process that has ended: `words` that it was started with, `files` of its modules."""
        return [json.loads(path.read_text()) for path in sorted(self.seen.glob("*.json"))]
