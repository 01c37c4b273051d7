"""`mvar copy`: a file of the ones that users edit, into the working directory."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mvar.errors import OK, UserError, say


@dataclass(frozen=True)
class Copy:
    """Copy a file that is there to be edited: an experiment, an analysis, a cluster profile, a notebook.

    Example: `mvar copy experiments/mixers.py`
    """

    file: Annotated[str, tyro.conf.Positional]
    """E.g. experiments/mixers.py."""
    to: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[PATH]", help_behavior_hint="")] = ""
    """Where to; default: the same path below the working directory."""

    def execute(self, arguments: list[str]) -> int:
        """Copy it; a file that is there is never replaced."""
        from mvar import shipped

        asked = self.file.removeprefix("./")
        kind, _, name = asked.partition("/")
        there = {f"{k}/{p.relative_to(shipped.folder(k))}": p for k in shipped.KINDS for p in shipped.files(k)}
        if asked not in there:
            near = [known for known in there if known.startswith(f"{kind}/")] or list(there)
            raise UserError(f"file: {self.file!r} is not there; allowed: {', '.join(near)}")
        target = shipped.user_path(self.to) if self.to else Path(kind, name)
        if target.is_dir():
            target /= Path(name).name
        if target.exists() or target.is_symlink():
            raise UserError(f"to: {target} is there already; allowed: a new name")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there[asked], target)
        except OSError as error:
            raise UserError(f"to: {target} cannot be written ({error.strerror})") from None
        say(f"copied: {target}")
        return OK
