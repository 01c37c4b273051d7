"""`mvar status`: what is done, running, stopped, failed, missing."""

from dataclasses import dataclass
from pathlib import Path

from mvar.errors import OK, existing_directory


@dataclass(frozen=True)
class Status:
    """Show every run that was begun or asked for: done, running, stopped, failed, missing."""

    results: Path = Path("results")
    """Where runs are kept."""

    def execute(self, arguments: list[str]) -> int:
        """Print the table; returns the exit code."""
        from experiments.tables import print_status

        print_status(existing_directory("results", self.results, "one that `mvar run` has made"))
        return OK
