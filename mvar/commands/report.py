"""`mvar report`: tables and figures of what is there."""

from dataclasses import dataclass
from pathlib import Path

from mvar.errors import OK, existing_directory


@dataclass(frozen=True)
class Report:
    """Write tables and figures of what is there: Markdown, CSV, LaTeX, PNG, PDF."""

    results: Path = Path("results")
    """Where runs are kept."""

    def execute(self, arguments: list[str]) -> int:
        """Write the report; returns the exit code."""
        from analysis.report import write_report

        results = existing_directory("results", self.results, "one that `mvar run` has made")
        print(f"report: {write_report(results)}")
        return OK
