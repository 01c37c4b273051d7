"""`mvar report`: tables and figures of what is there."""

from dataclasses import dataclass

from mvar.commands.options import Answer, Files, Folder, InResults
from mvar.commands.plugged import Plugged
from mvar.errors import OK, USER_ERROR, complain, existing_directory, say, warn


@dataclass(frozen=True)
class Report(Plugged, InResults, Answer):
    """Write tables and figures of what is there: one HTML page, Markdown, CSV, LaTeX, PNG, PDF.

    Example: `mvar report --results results`
    """

    computes = False
    experiments: Files = ()
    """FILE.py ... of experiments of one's own, whose tables it is to have too; the files are run."""
    out: Folder = ""
    """Folder to write, e.g. of runs that you may only read; default: report in the results directory."""

    def execute(self, arguments: list[str]) -> int:
        """Write the report, each problem a line on stderr; returns the exit code."""
        from mvar.analysis.records import NO_RUN
        from mvar.analysis.report import write_report
        from mvar.runs.display import shown

        results = existing_directory("results", self.results, "one that `mvar run` has made")
        from mvar.runs.experiment import take_experiment

        for given in self.experiments:
            take_experiment(given)
        problems: list[str] = []
        with shown("report", "writing the report") as progress:
            path = write_report(results, progress, problems.append, self.out or None)
        page = path.with_suffix(".html")
        if self.json:
            self.answer({"report": str(path), "page": str(page), "problems": problems})
        say(f"report: {path}")
        say(f"page: {page}")
        if nothing := next((problem for problem in problems if NO_RUN in problem), None):
            return complain(nothing, USER_ERROR)
        for problem in problems:
            warn(problem)
        if problems:  # exit code 0 all the same: what was asked for is written, and a grid may well be half done
            count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
            warn(f"{count}; the report is written all the same, and lists them under Problems")
        return OK
