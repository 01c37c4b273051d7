"""What the last report wrote: all that the next one may delete.

`report/.files.json` has the digest of every table and figure. A file that is not in it, or that somebody has changed
since, stays; so does all of an older report that kept no such list. What the next report writes anew it replaces.
"""

import re
from contextlib import suppress
from pathlib import Path

from mvar import layout
from mvar.errors import UserError
from mvar.files import file_digest, read_json, write_json

FOLDERS = (layout.TABLES, layout.FIGURES)
OURS = re.compile(rf"({'|'.join(FOLDERS)})/[A-Za-z0-9_+-][A-Za-z0-9._+-]*")  # whoever wrote the list: nowhere else


class Written:
    """The files of one report: its folders are made, its files noted, and what the last one had besides is removed.

    Raises:
        UserError: a folder of the report is a link: what lies there is somebody's own.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._paths: set[Path] = set()
        for name in FOLDERS:
            folder = directory / name
            if folder.is_symlink():
                raise UserError(
                    f"report: {folder} is a link to {folder.readlink()}, which a report does not write to; allowed: a "
                    "folder of its own (remove the link)"
                )
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, path: Path) -> None:
        """Note a file in one of the folders that was written just now."""
        self._paths.add(path)

    def finish(self) -> None:
        """Remove the last report's tables and figures that this one lacks, and keep the list for the next."""
        for name, digest in self._last().items():
            path = self.directory / name
            if path not in self._paths and path.is_file() and not path.is_symlink() and file_digest(path) == digest:
                path.unlink()
        files = {str(path.relative_to(self.directory)): file_digest(path) for path in sorted(self._paths)}
        write_json(self.directory / layout.REPORT_FILES, {"files": files})

    def _last(self) -> dict[str, str]:
        with suppress(OSError, UserError, KeyError, TypeError, AttributeError):  # none yet, or damaged: nothing is ours
            files = read_json(self.directory / layout.REPORT_FILES)["files"]
            return {name: digest for name, digest in files.items() if OURS.fullmatch(name)}
        return {}
