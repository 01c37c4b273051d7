"""`--plugin`: what commands share that load files of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import tyro


@dataclass(frozen=True)
class Plugged:
    """A command that loads plug-ins before it reads any config."""

    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = field(default=(), kw_only=True)
    """FILE.py with mixers, data sources, metrics and the like of one's own; may be given several times. Those that
    mvar.toml of the working directory names are loaded too."""
    computes: ClassVar[bool] = True
    """Whether it loads what mvar.toml and installed packages name too; else only what is asked for."""

    def load_plugins(self) -> None:
        """Load them; says which in the first line of the output."""
        from mvar.plugins import begin

        begin(self.plugin, self.computes, [name for name in self.asked_sweeps() if _is_own_file(name)])

    def asked_sweeps(self) -> Sequence[str]:
        """What is asked for by name, or by the path of a file of one's own."""
        return ()


def _is_own_file(name: str) -> bool:
    """Whether a sweep is a file that there is, and none of ours."""
    from mvar import shipped

    path = shipped.user_path(name)
    return path.suffix == ".py" and path.is_file() and path.resolve().parent != shipped.folder("experiments").resolve()
