"""The report: every table and figure that the run directories support, as Markdown, HTML, CSV, LaTeX, PNG and PDF.

What cannot be made is named with the reason, and the rest is written all the same. The same runs give the same bytes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mvar.analysis import background, figures, paper_figures
from mvar.analysis.cache import ReadCache
from mvar.analysis.cost_table import scored_models, table1
from mvar.analysis.differences import differences_table
from mvar.analysis.document import Block, Bullets, Section, Text, document_to_markdown
from mvar.analysis.grids import samples_figure
from mvar.analysis.imagenet_tables import ARTEFACTS, Artefact, imagenet_table
from mvar.analysis.inline import prose
from mvar.analysis.page import document_to_html
from mvar.analysis.records import Manifest, Records, load_records, unasked
from mvar.analysis.render import Column, Table, csv_text, latex_document, to_csv, to_latex
from mvar.analysis.scaling import curves, scaling_table
from mvar.analysis.style import Figure
from mvar.analysis.summary import summary
from mvar.analysis.tables import LAYOUTS, sweep_table
from mvar.analysis.written import Written
from mvar.errors import UserError
from mvar.files import atomic_write
from mvar.probes.attention_mass import AttentionStats
from mvar.runs.store import RunDirectory, Store, one_line
from mvar.runs.wiring import run_attention

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
SWEEP_ORDER = ("mixers", "parameters", "layers", "rejection", "scaling")
ALWAYS = ("mixers", "parameters", "layers")  # the paper's own: shown with dashes where nobody asked for them
TITLE = "Measured, beside what the paper prints"


def write_report(
    results: Path | str,
    progress: Progress | None = None,
    complain: Callable[[str], None] | None = None,
) -> Path:
    """Write `report/` (`report.md`, `report.html`, `tables/`, `figures/`) from the run directories under `results`.

    Args:
        results: a results directory (`results/README.md` has its layout). Without any run in it the report still has
            what needs none: Table 1's cost and all that the paper prints.
        progress: called with (sections done, sections in all, what is being made).
        complain: called in the end with each problem, one line.

    Returns:
        The path of `report.md`; `report.html` lies beside it.
    """
    directory = Path(results) / "report"
    records = load_records(results, ReadCache(directory / "cache.json"), allow_empty=True)
    writer = _Writer(records, progress or (lambda done, total, what: None))
    path = writer.write()
    for problem in dict.fromkeys(writer.problems) if complain else ():
        complain(problem)
    return path


class _Writer:
    """Collects the sections of the report, writes its files, and remembers which."""

    def __init__(self, records: Records, progress: Progress) -> None:
        self.records = records
        self.progress = progress
        self.done, self.total = 0, 0
        self.problems = records.problems
        self.directory = records.store.root / "report"
        self.figures = self.directory / "figures"
        self.written = Written(self.directory)
        self.sections: list[Section] = []
        self.tables: list[str] = []
        self.floors: list[dict[str, Any]] = []
        self.attention: list[str] = []
        self.swept: list[tuple[Manifest, Table, Table | None]] = []

    def write(self) -> Path:
        """Write everything; the path of `report.md`."""
        parts = [
            self._background,
            self._table1,
            *self._sweep_sections(),
            self._more_figures,
            *[lambda which=which: self._imagenet(which) for which in ARTEFACTS],
            self._runs,
        ]
        self.total = len(parts) + 1
        for part in parts:
            self.attempt("report", part)
            self.done += 1
            self._show("")
        self._missing()
        first = Section(TITLE, level=1)
        problems = len(dict.fromkeys(self.problems))
        found = self.attempt("summary", summary, self.records, self.swept, self.attention, self.floors, problems)
        first.blocks = found or []
        self.sections.insert(0, first)
        self._problems()
        self._save("tables/tables.tex", latex_document(self.tables))
        self.written.finish()
        self._save("report.md", document_to_markdown(self.sections))
        self._save("report.html", document_to_html(self.sections, self.directory))
        self.records.cache.save()
        self.done = self.total
        self._show("")
        return self.directory / "report.md"

    def _show(self, what: str) -> None:
        self.progress(self.done, self.total, what)

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
        self._show(title)
        self.sections.append(Section(title, list(blocks), level))

    def add(self, block: Block) -> None:
        """Add to the section that was begun last."""
        self.sections[-1].blocks.append(block)

    def _save(self, name: str, text: str) -> None:
        path = self.directory / name
        with atomic_write(path) as file:
            file.write(text.encode())
        if path.parent != self.directory:
            self.written.add(path)

    # Parts ----------------------------------------------------------------------------------------------------------

    def table(self, table: Table) -> None:
        """A table in all its forms."""
        self.add(table)
        for kind, text in (("csv", to_csv(table)), ("tex", to_latex(table))):
            self._save(f"tables/{table.file}.{kind}", text)
        self.tables.append(table.file)

    def figure(self, what: str, make: Callable[..., Figure], *arguments: Any) -> None:
        """A figure, or a problem."""
        self._show(f"figure {what}")
        figure = self.attempt(f"figure {what}", make, *arguments)
        if figure is None:
            return
        for kind in ("png", "pdf"):
            self.written.add(self.figures / f"{figure.file}.{kind}")
        self.add(figure)

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
            what = Text("What no generator on top of this tokenizer can be expected to beat.")
            self.section("Floors", what, level=3)
            self.table(background.floors_table(self.floors))

    def _table1(self) -> None:
        self.section("Table 1: attention score and cost")
        models, problems = scored_models(self.records, self._attention_of)
        self.problems += problems
        table = table1(models)
        self.attention = list(table.reading)
        self.table(table)
        self.figure(table.name, figures.table1_figure, table, self.figures)
        largest = {scored.config.data.name: scored for scored in sorted(models, key=lambda m: m.config.model.width)}
        for data, scored in largest.items():
            self.figure(data, figures.flow_figure, scored, f"attention-{data}", self.figures)

    def _attention_of(self, store: Store, run: RunDirectory) -> AttentionStats:
        return run_attention(
            store, run, lambda done, total: self._show(f"attention of {run.name}: {done} of {total} images")
        )

    def _imagenet(self, which: Artefact) -> None:
        self.section(f"{which.artefact}: {which.title}")
        table, refused = imagenet_table(self.records, which)
        if refused:
            self.problems.append(f"{which.artefact}: {refused}")
        self.table(table)
        if which.name == "table2":
            self.figure("figure2", paper_figures.figure2, table, self.figures)

    def _sweep_sections(self) -> list[Callable[[], None]]:
        known = [m for sweep in SWEEP_ORDER for m in self.records.sweeps(sweep)]
        known += [unasked(sweep) for sweep in ALWAYS if not self.records.sweeps(sweep)]
        known.sort(key=lambda m: (SWEEP_ORDER.index(m.sweep), m.preset, m.mode != "steps", m.name))
        others = [m for m in self.records.manifests if m.sweep not in LAYOUTS]
        self.problems += [f"sweep {m.name}: no table is known for {m.sweep!r}" for m in others]
        return [lambda manifest=manifest: self._sweep(manifest) for manifest in known]

    def _sweep(self, manifest: Manifest) -> None:
        self.section(f"{manifest.artefact}: {manifest.sweep}, {manifest.title}")
        try:
            table = sweep_table(self.records, manifest)
        except UserError as error:
            self.add(Text(f"**Not compared.** {prose(str(error))}"))
            self.problems.append(f"{manifest.name}: {error}")
            return
        self.table(table)
        differences = None
        if manifest.sweep != "scaling":
            differences = self.attempt("differences", differences_table, self.records, manifest)
        if differences:
            self.table(differences)
        self.swept.append((manifest, table, differences))
        if any("n" in row for row in table.rows):
            self._sweep_figures(manifest, table)

    def _sweep_figures(self, manifest: Manifest, table: Table) -> None:
        if manifest.sweep == "layers":
            self.figure(manifest.name, figures.layers_figure, table, manifest, self.figures)
        if manifest.sweep in ("mixers", "rejection"):
            self.figure("samples", samples_figure, self.records, manifest, self.figures, self.problems)
        if manifest.sweep == "mixers":
            self.figure("likelihood", figures.scale_figure, self.records, manifest, self.figures)
            self.figure("loss", figures.loss_figure, self.records, manifest, self.figures, self.problems)
        if manifest.sweep == "scaling":
            found = curves(self.records, manifest)
            laws_table, laws = scaling_table(found, manifest)
            self.table(laws_table)
            self.figure(manifest.name, paper_figures.scaling_figure, found, laws, manifest, self.figures)

    def _more_figures(self) -> None:
        groups: dict[str, list[Manifest]] = {}
        for manifest, table, _ in self.swept:
            if manifest.sweep in ALWAYS and any("n" in row for row in table.rows):
                groups.setdefault(manifest.setting, []).append(manifest)
        if groups:
            self.section("FID against cost")
        for manifests in groups.values():
            self.figure("cost", figures.cost_figure, self.records, manifests, self.figures)

    def _runs(self) -> None:
        table = self.records.table
        rows = table.astype(object).itertuples(index=False, name=None)
        self._save("tables/runs.csv", csv_text(list(table.columns), rows))
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
