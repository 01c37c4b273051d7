"""The report: every table and figure that the run directories support, as Markdown, CSV, LaTeX, PNG and PDF.

What cannot be made is named with the reason, and the rest is written all the same. The same runs give the same bytes.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from analysis import background, figures
from analysis.compare import DASH
from analysis.cost_table import scored_models, table1
from analysis.grids import samples_figure
from analysis.records import Manifest, Records, load_records
from analysis.render import Table, to_csv, to_latex, to_markdown
from analysis.style import Figure
from analysis.tables import LAYOUTS, sweep_table
from experiments.store import DONE, one_line
from mvar.errors import UserError
from mvar.files import atomic_write

T = TypeVar("T")
SWEEP_ORDER = ("parameters", "mixers", "layers")  # Table 5, Table 6, Figure 5


def write_report(results: Path | str, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write `report/report.md` with its tables and figures from the run directories under `results`.

    Args:
        results: a results directory (`results/README.md` has its layout).
        progress: called with (sections done, sections in all).

    Returns:
        The path of `report.md`.

    Raises:
        UserError: there is no run at all; says which command makes some.
    """
    records = load_records(results)
    return _Writer(records, progress or (lambda done, total: None)).write()


class _Writer:
    """Collects the lines of the report, writes its files, and remembers which."""

    def __init__(self, records: Records, progress: Callable[[int, int], None]) -> None:
        self.records = records
        self.progress = progress
        self.problems = records.problems
        self.directory = records.store.root / "report"
        self.lines: list[str] = []
        self.written: set[Path] = set()

    def write(self) -> Path:
        """Write everything; the path of `report.md`."""
        (self.directory / "figures").mkdir(parents=True, exist_ok=True)
        sections = [self._head, self._background, self._table1, *self._sweep_sections(), self._more_figures, self._runs]
        for number, section in enumerate(sections):
            self.attempt("report", section)
            self.progress(number + 1, len(sections) + 1)
        self._missing()
        self._problems()
        self._remove_stale()
        path = self.directory / "report.md"
        self._save(path, "\n".join(self.lines) + "\n")
        self.progress(len(sections) + 1, len(sections) + 1)
        return path

    def attempt(self, what: str, make: Callable[..., T], *arguments: Any) -> T | None:
        """What `make` returns; if it fails, None and a line among the problems: one part never stops the rest."""
        try:
            return make(*arguments)
        except Exception as error:  # whatever is wrong with one part: the others are still worth having
            told = one_line(error)
            self.problems.append(told if isinstance(error, UserError) else f"{what}: {told}")
        return None

    def say(self, *lines: str) -> None:
        """Add lines, and an empty one."""
        self.lines += [*lines, ""]

    def _save(self, path: Path, text: str) -> None:
        with atomic_write(path) as file:
            file.write(text.encode())
        self.written.add(path)

    def _remove_stale(self) -> None:
        """Tables and figures of an earlier report that this one does not have."""
        for folder in ("tables", "figures"):
            for path in (self.directory / folder).glob("*"):
                if path not in self.written:
                    path.unlink()

    # Parts ----------------------------------------------------------------------------------------------------------

    def table(self, table: Table) -> None:
        """A table in its three forms, and how to read it."""
        link = "../runs/{}/".format
        self.say(to_markdown(table, link))
        for kind, text in (("csv", to_csv(table)), ("tex", to_latex(table))):
            self._save(self.directory / "tables" / f"{table.name}.{kind}", text)
        files = " · ".join(f"[{kind}](tables/{table.name}.{kind})" for kind in ("csv", "tex"))
        self.say("**How to read this**", "", *[f"- {line}" for line in table.reading])
        self.say(f"Files: {files}")

    def figure(self, what: str, make: Callable[..., Figure], *arguments: Any) -> None:
        """A figure, or a problem."""
        figure = self.attempt(f"figure {what}", make, *arguments)
        if figure is None:
            return
        self.written |= {self.directory / "figures" / f"{figure.name}.{kind}" for kind in ("png", "pdf")}
        self.say(f"![{figure.title}](figures/{figure.name}.png)")
        self.say(f"*{figure.title}.* {figure.caption} [pdf](figures/{figure.name}.pdf)")

    @property
    def figures(self) -> Path:
        """Where figures go."""
        return self.directory / "figures"

    # Sections -------------------------------------------------------------------------------------------------------

    def _head(self) -> None:
        table = self.records.table
        done = table.loc[table["state"] == DONE, "run_id"].nunique()
        asked = {run_id for manifest in self.records.manifests for cell in manifest.cells for run_id in cell.run_ids}
        missing = {missing.run_id for missing in self.records.missing}
        self.say("# Measured, beside what the paper prints")
        self.say(
            f"{done} finished runs; {len(asked) - len(missing)} of the {len(asked)} that sweeps asked for are here"
            + (f", {len(missing)} are [missing](#missing)." if missing else ".")
            + " Each row of a table links its runs. A dash is what is not measured or not printed: nothing is filled "
            "in. Printed values are the paper's, on ImageNet, and stand in columns of their own: they show the paper's "
            "trend, they are no target."
        )

    def _background(self) -> None:
        self.say("## What the numbers stand on")
        for lines in (background.data_lines, background.tokenizer_lines, background.extractor_lines):
            for line in self.attempt("background", lines, self.records, self.problems) or []:
                self.lines.append(f"- {line}")
        for line in self.attempt("background", background.machine_lines, self.records, self.problems) or []:
            self.lines.append(f"- **Machine**: {line}.")
        self.lines.append("")
        rows = self.attempt("floors", background.floor_rows, self.records, self.problems) or []
        if not rows:
            return
        self.say("### Floors", "", "What no generator on top of this tokenizer can be expected to beat.")
        self.lines += ["| floor | value | data |", "| :-- | --: | :-- |"]
        for row in rows:
            value = f"{row['value']:.3f}" + ("" if row["sd"] is None else f" ± {row['sd']:.3f}")
            self.lines.append(f"| {row['what']} | {value} | {row['data']}, {row['num_images']:,} images |")
        self.lines.append("")
        self._save(self.directory / "tables" / "floors.csv", pd.DataFrame(rows).to_csv(index=False))

    def _table1(self) -> None:
        models, problems = scored_models(self.records)
        self.problems += problems
        self.say("## Table 1: attention score and cost")
        table = table1(models)
        self.table(table)
        self.figure(table.name, figures.table1_figure, table, self.figures)
        for number, scored in enumerate(models):
            name = f"attention-{scored.config.data.name}-{number}"
            self.figure(name, figures.flow_figure, scored, name, self.figures)

    def _sweep_sections(self) -> list[Callable[[], None]]:
        known = [m for sweep in SWEEP_ORDER for m in self.records.sweeps(sweep)]
        known.sort(key=lambda m: (SWEEP_ORDER.index(m.sweep), m.preset, m.mode != "steps", m.name))
        others = [m for m in self.records.manifests if m.sweep not in LAYOUTS]
        self.problems += [f"sweep {m.name}: no table is known for {m.sweep!r}" for m in others]
        return [lambda manifest=manifest: self._sweep(manifest) for manifest in known]

    def _sweep(self, manifest: Manifest) -> None:
        self.say(f"## {manifest.artefact}: {manifest.sweep}, {manifest.title}")
        try:
            table = sweep_table(self.records, manifest)
        except UserError as error:
            self.say(f"**Not compared.** {error}")
            self.problems.append(f"{manifest.name}: {error}")
            return
        self.table(table)
        if manifest.sweep == "layers":
            self.figure(manifest.name, figures.layers_figure, table, manifest, self.figures)
        if manifest.sweep == "mixers":
            self.figure("samples", samples_figure, self.records, manifest, self.figures, self.problems)
            self.figure("likelihood", figures.scale_figure, self.records, manifest, self.figures)
            self.figure("loss", figures.loss_figure, self.records, manifest, self.figures, self.problems)

    def _more_figures(self) -> None:
        groups: dict[tuple[str, str], list[Manifest]] = {}
        for manifest in self.records.manifests:
            if manifest.sweep in LAYOUTS:
                groups.setdefault((manifest.preset, manifest.mode), []).append(manifest)
        if groups:
            self.say("## FID against cost")
        for manifests in groups.values():
            self.figure("cost", figures.cost_figure, self.records, manifests, self.figures)

    def _runs(self) -> None:
        self._save(self.directory / "tables" / "runs.csv", self.records.table.to_csv(index=False))
        self.say("## All runs", "", "Every metric of every run: [runs.csv](tables/runs.csv).")

    def _missing(self) -> None:
        if not self.records.missing:
            return
        self.say("## Missing", "", "A command makes what it lists and skips what is there.")
        self.lines += ["| sweep | row | run | why | command |", "| :-- | :-- | :-- | :-- | :-- |"]
        for m in self.records.missing:
            self.lines.append(f"| {m.sweep} | {m.label} | {m.run_id} | {m.why} | `{m.command or DASH}` |")
        self.lines.append("")

    def _problems(self) -> None:
        if self.problems:
            here = f"{self.records.store.root}/"  # a report does not depend on where it was made
            self.say("## Problems", "", *[f"- {p.replace(here, '')}" for p in dict.fromkeys(self.problems)])


def main(arguments: list[str] | None = None) -> int:
    """`python -m analysis.report [RESULTS]`: write the report and print where it is."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        print(write_report(Path(arguments[0] if arguments else "results")))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
