"""`--plugin`: what commands share that load files of the user's own."""

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

        begin(self.plugin, everything=self.computes)
