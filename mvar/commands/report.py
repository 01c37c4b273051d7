"""`mvar report`: tables and figures of what is there."""

from dataclasses import dataclass
from pathlib import Path

from mvar.errors import OK, USER_ERROR, complain, existing_directory, warn


@dataclass(frozen=True)
class Report:
    """Write tables and figures of what is there: one HTML page, Markdown, CSV, LaTeX, PNG, PDF."""

    results: Path = Path("results")
    """Where runs are kept."""

    def execute(self, arguments: list[str]) -> int:
        """Write the report, each problem a line on stderr; returns the exit code."""
        from analysis.records import NO_RUN
        from analysis.report import write_report

        results = existing_directory("results", self.results, "one that `mvar run` has made")
        problems: list[str] = []
        path = write_report(results, complain=problems.append)
        print(f"report: {path}")
        print(f"page: {path.with_suffix('.html')}")
        if nothing := next((problem for problem in problems if NO_RUN in problem), None):
            return complain(nothing, USER_ERROR)
        for problem in problems:
            warn(problem)
        return OK
