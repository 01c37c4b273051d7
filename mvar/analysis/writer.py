"""Writes what analyses draw: collects sections, writes tables in all forms and figures, and remembers which."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mvar import layout
from mvar.analysis.contract import Analysis, find_analysis
from mvar.analysis.differences import differences_table
from mvar.analysis.document import Block, Section, Text
from mvar.analysis.inline import prose
from mvar.analysis.manifests import Manifest
from mvar.analysis.records import Records
from mvar.analysis.render import Table, latex_document, to_csv, to_latex
from mvar.analysis.style import DARK, Figure
from mvar.analysis.tables import sweep_table
from mvar.analysis.written import Written
from mvar.errors import UserError
from mvar.files import atomic_write
from mvar.runs.columns import Column
from mvar.runs.store import one_line

T = TypeVar("T")
Told = Callable[[int, int, str], None]  # (sections done, in all, what is being made)


class Writer:
    """The page that analyses draw on: `records` is what there is, `figures` the folder that figures go to.

    What one part cannot draw becomes a line among `problems`; the others are drawn all the same. `headlines` are
    sentences for the report's first screen.
    """

    def __init__(self, records: Records, directory: Path, told: Told | None = None) -> None:
        self.records = records
        self.directory = directory
        self.figures = directory / layout.FIGURES
        self.problems = records.problems
        self.written = Written(directory)
        self.sections: list[Section] = []
        self.headlines: list[str] = []
        self.swept: list[tuple[Manifest, Table, Table | None]] = []  # each request, its table, its differences
        self.done, self.total = 0, 0
        self._told = told or (lambda done, total, what: None)
        self._tables: list[str] = []

    def show(self, what: str) -> None:
        """Tell what is being made."""
        self._told(self.done, self.total, what)

    def attempt(self, what: str, make: Callable[..., T], *arguments: Any) -> T | None:
        """What `make` returns; if it fails, None and a line among the problems: one part never stops the rest."""
        try:
            return make(*arguments)
        except Exception as error:  # whatever is wrong with one part: the others are still worth having
            told = one_line(error)
            self.problems.append(told if isinstance(error, UserError) else f"{what}: {told}")
        return None

    def section(self, title: str, *blocks: Block, level: int = 2) -> None:
        """Begin a section."""
        self.show(title)
        self.sections.append(Section(title, list(blocks), level))

    def add(self, block: Block) -> None:
        """Add to the section that was begun last."""
        self.sections[-1].blocks.append(block)

    def table(self, table: Table) -> None:
        """A table in all its forms: on the page, CSV, LaTeX."""
        self.add(table)
        self.save_table(table)

    def save_table(self, table: Table) -> None:
        """A table as CSV and LaTeX."""
        for kind, text in (("csv", to_csv(table)), ("tex", to_latex(table))):
            self.save(f"{layout.TABLES}/{table.file}.{kind}", text)
        self._tables.append(table.file)

    def csv(self, table: Table) -> None:
        """A table that is too long to read as CSV alone, and a line that leads to it."""
        path = f"{layout.TABLES}/{table.file}.csv"
        self.save(path, to_csv(table))
        self.add(Text(f"{prose(table.title)}: [{table.file}.csv]({path}). {prose(table.caption)}"))

    def figure(self, what: str, make: Callable[..., Figure], *arguments: Any) -> None:
        """A figure, PNG and PDF, or a problem."""
        self.show(f"figure {what}")
        figure = self.attempt(f"figure {what}", make, *arguments)
        if figure is None:
            return
        for suffix in (".png", ".pdf", DARK):
            if (path := self.figures / f"{figure.file}{suffix}").is_file():
                self.written.add(path)
        self.add(figure)

    def sweep(self, manifest: Manifest, only: Analysis | None = None) -> None:
        """A section of one request of an experiment: its table, differences from its baseline, its figures.

        Args:
            manifest: the request.
            only: the one figure to draw, by this very object; None: those that the experiment names.
        """
        self.section(f"{manifest.artefact}: {manifest.sweep}, {manifest.title}")
        self._settings(manifest)
        try:
            table = sweep_table(self.records, manifest)
        except UserError as error:
            self.add(Text(f"**Not compared.** {prose(str(error))}"))
            self.problems.append(f"{manifest.name}: {error}")
            return
        self.table(table)
        differences = None
        if manifest.experiment.compares != "sizes":
            differences = self.attempt("differences", differences_table, self.records, manifest)
        if differences:
            self.table(differences)
        self.swept.append((manifest, table, differences))
        if is_measured(table):
            for name in manifest.experiment.figures if only is None else (only.name,):
                analysis = only or self.attempt(f"analysis {name}", find_analysis, name)
                if analysis:
                    self.attempt(f"figure {name}", analysis.draw, self, manifest, table)

    def _settings(self, manifest: Manifest) -> None:
        """What stands behind the letter of a request's settings, once."""
        name = f"settings-{manifest.letter}"
        if manifest.letter and name not in self._tables:
            rows = [{"field": field, "value": str(value)} for field, value in manifest.settings.items()]
            columns = (Column("field", "field", is_text=True), Column("value", "value", is_text=True))
            self.table(
                Table(name, f"Settings {manifest.letter}: where they differ from {manifest.preset}", columns, rows)
            )

    def analysis(self, analysis: Analysis) -> None:
        """What one analysis over all results draws; it begins its own sections."""
        self.attempt(f"analysis {analysis.name}", analysis.draw, self)

    def save(self, name: str, text: str) -> None:
        """Write a text below the directory."""
        path = self.directory / name
        with atomic_write(path) as file:
            file.write(text.encode())
        if path.parent != self.directory:
            self.written.add(path)

    def finish(self) -> None:
        """Write the file that includes every LaTeX table; remove what the last report had and this one lacks."""
        self.save(f"{layout.TABLES}/{layout.TABLES_TEX}", latex_document(self._tables))
        self.written.finish()


def is_measured(table: Table) -> bool:
    """Whether any run stands behind a table of a sweep."""
    return any("n" in row for row in table.rows)
