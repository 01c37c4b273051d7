"""Puts a copy of the files that users edit into the wheel, as `mvar/_shipped`; all else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
KINDS = ("experiments", "analysis", "slurm", "notebooks")  # as in mvar/shipped.py
SUFFIXES = {".py", ".csv", ".toml", ".md", ".ipynb"}


class BuildWithShipped(build_py):
    """Not in an editable install: that one reads the repository's own."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for kind in KINDS:
            found = [p for p in sorted((ROOT / kind).rglob("*")) if p.suffix in SUFFIXES and p.is_file()]
            if not found:
                raise SystemExit(f"{kind}/ has no files: a wheel without them is not whole (MANIFEST.in names them)")
            for path in found:
                copy = Path(self.build_lib, "mvar", "_shipped", path.relative_to(ROOT))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


setup(cmdclass={"build_py": BuildWithShipped})
