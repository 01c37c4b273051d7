"""The report: every table and figure that the run directories support, as Markdown, HTML, CSV, LaTeX, PNG and PDF.

What cannot be made is named with the reason, and the rest is written all the same. The same runs give the same bytes.
Which experiments and analyses there are, and in which order they stand, is said by their own files.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mvar import layout
from mvar.analysis import background, opening
from mvar.analysis.cache import ReadCache
from mvar.analysis.contract import Analysis, analysis_names, find_analysis
from mvar.analysis.document import Bullets, Section, Text, document_to_markdown
from mvar.analysis.frame import any_text
from mvar.analysis.inline import prose
from mvar.analysis.manifests import Manifest, unasked
from mvar.analysis.own_metrics import own_table
from mvar.analysis.page import document_to_html
from mvar.analysis.records import NO_RUN, Records, load_records
from mvar.analysis.render import Table, csv_text
from mvar.analysis.summary import summary, used_rows
from mvar.analysis.writer import Told, Writer
from mvar.errors import FAILURE, OK, USER_ERROR, UserError, complain, existing_directory, exit_code, say, warn
from mvar.escaping import degrade
from mvar.place import results_directory
from mvar.runs.columns import Column
from mvar.runs.experiment import Experiment, experiments


@any_text
def write_report(
    results: Path | str,
    progress: Told | None = None,
    complain: Callable[[str], None] | None = None,
    out: Path | str | None = None,
) -> Path:
    """Write a report (`report.md`, `report.html`, `tables/`, `figures/`) from the run directories under `results`.

    Args:
        results: a results directory (`results/README.md` has its layout). Without any run in it the report still has
            what needs none: Table 1's cost and all that the paper prints.
        progress: called with (sections done, sections in all, what is being made).
        complain: called in the end with each problem, one line.
        out: the folder that all of it is written to; None: `report` in the results directory.

    Returns:
        The path of `report.md`; `report.html` lies beside it.

    Raises:
        UserError: `out` is a file, or a folder of the report in it is a link.
    """
    directory = Path(results) / layout.REPORT if out is None else Path(out)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"out: {directory} is a file; allowed: a folder, made if it is missing")
    records = load_records(results, ReadCache(directory / layout.REPORT_CACHE), allow_empty=True)
    writer = _Report(records, directory, progress)
    path = writer.write()
    if complain:
        for problem in dict.fromkeys(writer.problems):
            complain(problem)
    return path


class _Report(Writer):
    """The whole report."""

    def __init__(self, records: Records, directory: Path, told: Told | None = None) -> None:
        super().__init__(records, directory, told)
        self.floors: list[dict[str, Any]] = []

    def write(self) -> Path:
        """Write everything; the path of `report.md`."""
        parts = [self._background, *self._drawn(), self._own_metrics, self._runs]
        self.total = len(parts) + 1
        for part in parts:
            self.attempt("report", part)
            self.done += 1
            self.show("")
        self._missing()
        self.sections.insert(0, self._first())
        self._problems()
        self.finish()
        self.save(layout.REPORT_MD, document_to_markdown(self.sections))
        self.save(layout.REPORT_HTML, document_to_html(self.sections, self.directory))
        self.records.cache.save()
        self.done = self.total
        self.show("")
        return self.directory / layout.REPORT_MD

    def _first(self) -> Section:
        """The first screen, made of all that stands below it."""
        first, problems = Section(opening.NAME, level=1), len(dict.fromkeys(self.problems))
        used = self.attempt("summary", used_rows, self.records, self.swept)
        if used is None:
            return first
        first.title = opening.title(used)
        above = self.attempt("summary", opening.opening, self.records, self.swept, used, self.sections) or []
        for block in above:
            if isinstance(block, Table):
                self.save_table(block)
        told = (self.records, self.swept, used, self.headlines, self.floors, problems)
        first.blocks += [*above, *(self.attempt("summary", summary, *told) or [])]
        return first

    # Sections -------------------------------------------------------------------------------------------------------

    def _background(self) -> None:
        self.section("What the numbers stand on")
        lines: list[str] = []
        makers = (background.data_lines, background.tokenizer_lines, background.extractor_lines, background.start_lines)
        for make in makers:
            lines += self.attempt("background", make, self.records, self.problems) or []
        machines = self.attempt("background", background.machine_lines, self.records, self.problems) or []
        made = [f"**Made by**: {line}." for line in background.execution_lines(self.records)]
        self.add(Bullets([*lines, *(f"**Machine**: {line}." for line in machines), *made]))
        self.floors = self.attempt("floors", background.floor_rows, self.records, self.problems) or []
        if self.floors:
            what = Text(background.floors_are(self.records))
            self.section("Floors", what, level=3)
            self.table(background.floors_table(self.floors))

    def _drawn(self) -> list[Callable[[], None]]:
        """Requests of experiments and analyses over all results, in their order."""
        placed: list[tuple[tuple[Any, ...], Callable[[], None]]] = []
        for manifest in sweeps_to_show(self.records, self.problems):
            key = (manifest.experiment.place, manifest.sweep, manifest.preset, manifest.mode != "steps", manifest.name)
            placed.append((key, lambda manifest=manifest: self.sweep(manifest)))
        for name in analysis_names():
            analysis = self.attempt(f"analysis {name}", find_analysis, name)
            if analysis and analysis.of == "results":
                placed.append(((analysis.place, name), lambda analysis=analysis: self.analysis(analysis)))
        return [draw for _, draw in sorted(placed, key=lambda item: item[0])]

    def _own_metrics(self) -> None:
        if table := own_table(self.records):
            self.section("Further metrics", Text("No other table names these."))
            self.table(table)

    def _runs(self) -> None:
        table = self.records.table
        rows = table.astype(object).itertuples(index=False, name=None)
        self.save(f"{layout.TABLES}/{layout.RUNS_CSV}", csv_text(list(table.columns), rows))
        self.section("All runs", Text("Every metric of every run: [runs.csv](tables/runs.csv)."))

    def _missing(self) -> None:
        if not self.records.missing:
            return
        self.section("Missing", Text("A command makes what it lists and skips what is there."))
        names = {"sweep": "sweep", "label": "row", "run_id": "run", "why": "why", "command": "command"}
        columns = [Column(key, heading, is_text=True, is_code=key == "command") for key, heading in names.items()]
        rows = [{key: getattr(m, key) for key in names} for m in self.records.missing]
        self.table(Table("missing", "Runs that sweeps asked for and that are not there", columns, rows))

    def _problems(self) -> None:
        if self.problems:
            here = f"{self.records.store.root}/"  # a report does not depend on where it was made
            self.section("Problems", Bullets([prose(p.replace(here, "")) for p in dict.fromkeys(self.problems)]))


def sweeps_to_show(records: Records, problems: list[str]) -> list[Manifest]:
    """Every request whose experiment is known, and with dashes what the paper has and nobody asked for.

    A request of an experiment whose file is not here becomes a problem.
    """
    found = []
    for manifest in records.manifests:
        if manifest.is_known:
            found.append(manifest)
        else:
            file = manifest.file or "FILE.py"
            told = f"one of your own is shown by `mvar report --experiments {file}`"
            problems.append(f"sweep {manifest.name}: no table is known for {manifest.sweep!r}; {told}")
    asked = {manifest.sweep for manifest in found}
    of_paper = [experiment.name for experiment in experiments(problems.append) if experiment.of_paper]
    return found + [unasked(name) for name in of_paper if name not in asked]


@any_text
def main(analysis: Analysis, arguments: Sequence[str] | None = None) -> int:
    """What `python analysis/NAME.py` does: one analysis, written below `RESULTS/analysis/NAME`.

    Without any run there, the page has what needs none, and the exit code is 2 as that of `mvar report`.
    """
    for stream in (sys.stdout, sys.stderr):
        degrade(stream)
    parser = argparse.ArgumentParser(description=analysis.title)
    parser.add_argument("--results", type=Path, default=results_directory(), help="where runs are kept")
    parser.add_argument("--out", type=Path, help="where to write; default: RESULTS/analysis/NAME")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _write_alone(analysis, given.results, given.out))


def _write_alone(analysis: Analysis, results: Path, out: Path | None) -> int:
    existing_directory("results", results, "one that `mvar run` has made")
    page = Writer(load_records(results, allow_empty=True), out or results / layout.ANALYSIS / analysis.name)
    _draw_alone(page, analysis)
    say(f"page: {page.directory / layout.PAGE_HTML}")
    if nothing := next((problem for problem in page.problems if NO_RUN in problem), None):
        return complain(nothing, USER_ERROR)
    for problem in dict.fromkeys(page.problems):
        warn(problem)
    if any(section.blocks for section in page.sections):
        return OK
    return complain(f"{analysis.name}: the runs of {results} have nothing that it draws", FAILURE)


def _draw_alone(page: Writer, analysis: Analysis) -> None:
    """The page of one analysis; of a request of an experiment its tables, and of its figures this one alone."""
    page.sections.append(Section(analysis.title, level=1))
    if analysis.of == "results":
        page.analysis(analysis)
    else:
        asked = [m for m in sweeps_to_show(page.records, page.problems) if _is_figure_of(analysis, m.experiment)]
        if not asked:
            raise _never_asked(analysis, page.records)
        for manifest in asked:
            page.sweep(manifest, analysis)
    page.finish()
    page.save(layout.PAGE_MD, document_to_markdown(page.sections))
    page.save(layout.PAGE_HTML, document_to_html(page.sections, page.directory))


def _is_figure_of(analysis: Analysis, experiment: Experiment) -> bool:
    # by the end of a path: an experiment may name the file of an analysis
    return analysis.name in {Path(figure).stem for figure in experiment.figures}


def _never_asked(analysis: Analysis, records: Records) -> UserError:
    """Why an analysis of requests has none to draw."""
    known = experiments()
    if those := [experiment.name for experiment in known if _is_figure_of(analysis, experiment)]:
        commands = ", ".join(f"`mvar run {name}`" for name in those)
        return UserError(
            f"results: {records.store.root} has no request that {analysis.name} draws; {commands} makes one"
        )
    figures = sorted({Path(figure).stem for experiment in known for figure in experiment.figures})
    return UserError(
        f"analysis: {analysis.name!r} is among the figures of no experiment; allowed: {', '.join(figures)}, or one "
        "over all results (of='results')"
    )
