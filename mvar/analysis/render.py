"""A table as a value, and its three forms: Markdown to read, CSV to compute with, LaTeX (booktabs) to print."""

import csv
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from mvar.analysis import inline
from mvar.analysis.compare import DASH, Difference, Measured
from mvar.escaping import code, file_name, latex, latex_comment, markdown, spreadsheet
from mvar.runs.columns import MEASURED, Column

MAX_LINKS = 12  # run links in a row; the CSV has them all
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float) -> str:
    """Three significant digits with an SI prefix, e.g. 1.24 T."""
    for size, prefix in PREFIXES:
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def cell_text(column: Column, value: Any) -> str:
    """A cell as text; a dash for what is not there."""
    if value is None:
        return DASH
    if isinstance(value, Measured) and column.decimals is None:
        return si(value.mean * column.factor)
    if isinstance(value, Measured | Difference):
        assert column.decimals is not None
        return value.text(column.decimals, column.factor)
    if isinstance(value, int | float) and column.decimals is None:
        return si(value * column.factor)
    if isinstance(value, float):
        return f"{value * column.factor:.{column.decimals}f}"
    return str(value)


@dataclass(frozen=True)
class Note:
    """A footnote on one cell; `row` None: on the column's heading."""

    row: int | None
    column: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of values by column key. `reading` says how to read it, computed from its numbers.

    Titles, captions and cells are plain text; notes, `reading` and `missing` are sentences of `mvar.analysis.inline`.
    `run_ids` has the runs behind each row; empty for a table that no run stands behind, which then has no such column.
    `missing` says what its dashes want, and which command makes it.
    """

    name: str  # the file's, e.g. `mixers-digits-steps`
    title: str
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    run_ids: Sequence[Sequence[str]] = ()
    notes: Sequence[Note] = ()
    reading: Sequence[str] = field(default_factory=list)
    missing: Sequence[str] = field(default_factory=list)
    caption: str = ""  # what a reader of the table alone must know: images, seeds

    @property
    def file(self) -> str:
        """The name as that of a file, an anchor or a LaTeX label."""
        return file_name(self.name)

    def runs_of(self, row: int, key: str) -> Sequence[str]:
        """The runs that a cell was computed from: its own where it knows them, else its row's if it is measured."""
        value = self.rows[row].get(key)
        if isinstance(value, Measured | Difference) and value.run_ids:
            return value.run_ids
        column = next(column for column in self.columns if column.key == key)
        return self.run_ids[row] if self.run_ids and value is not None and column.group == MEASURED else ()

    def footnotes(self) -> list[tuple[str, str]]:
        """(letter, text) of the notes in order; equal texts share a letter."""
        texts = list(dict.fromkeys(note.text for note in self.notes))
        return list(zip(string.ascii_lowercase, texts, strict=False))

    def marks(self, row: int | None, column: str) -> str:
        """The footnote letters of a cell, e.g. "a,b"."""
        letters = {text: letter for letter, text in self.footnotes()}
        return ",".join(letters[n.text] for n in self.notes if (n.row, n.column) == (row, column))


def to_markdown(table: Table, link: Callable[[str], str]) -> str:
    """GitHub's Markdown: headings say measured or paper, the last column links each row's runs, footnotes follow.

    Args:
        table: the table.
        link: the relative link of a run id.
    """

    def marked(text: str, marks: str) -> str:
        return f"{text}<sup>{marks}</sup>" if marks else text

    headings = []
    for column in table.columns:
        group = f"<br>*{column.group}*" if column.group else ""
        headings.append(marked(column.heading, table.marks(None, column.key)) + group)
    with_runs = bool(table.run_ids)
    lines = ["| " + " | ".join([*headings, *["runs"] * with_runs]) + " |"]
    alignment = [" :-- " if column.is_text else " --: " for column in table.columns]
    lines.append("|" + "|".join([*alignment, *[" :-- "] * with_runs]) + "|")
    for number, row in enumerate(table.rows):
        cells = [marked(_markdown_cell(c, row.get(c.key)), table.marks(number, c.key)) for c in table.columns]
        if with_runs:
            links = [f"[{markdown(short(run_id))}]({link(run_id)})" for run_id in table.run_ids[number][:MAX_LINKS]]
            more = len(table.run_ids[number]) - len(links)
            cells.append(" ".join(links) + (f" and {more} more, see the CSV" if more else "") or DASH)
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"<sup>{letter}</sup> {inline.to_markdown(text)}" for letter, text in table.footnotes()]
    notes += [inline.to_markdown(text) for text in table.missing]
    return "\n".join(lines) + "\n" + "".join(f"\n{note}  " for note in notes)


def _markdown_cell(column: Column, value: Any) -> str:
    text = cell_text(column, value)
    if value is None or isinstance(value, Measured | Difference | int | float):
        return text
    return inline.to_cell(code(text)) if column.is_code else markdown(text)


def short(run_id: str) -> str:
    """Seed and hash of a run id, enough to find it: `s0-1a2b3c4d`."""
    return "-".join(run_id.split("-")[-2:])


def to_csv(table: Table) -> str:
    """Plain numbers by key: a measured quantity has `_sd` and `_n` columns beside it; the last one has the run ids."""
    rows = []
    for number, row in enumerate(table.rows):
        flat: dict[str, Any] = {}
        for column in table.columns:
            value, key = row.get(column.key), column.key
            if isinstance(value, Measured):
                flat |= {key: value.mean, f"{key}_sd": value.sd, f"{key}_n": value.n}
            elif isinstance(value, Difference):
                flat |= {key: value.mean, f"{key}_low": value.low, f"{key}_high": value.high, f"{key}_n": value.n}
            else:
                flat[key] = value
        rows.append(flat | {"run_ids": " ".join(table.run_ids[number]) if table.run_ids else None})
    names = list(dict.fromkeys(name for row in rows for name in row if name != "run_ids"))
    order = sorted(names, key=lambda name: _column_order(table, name))  # an sd beside its mean, even if row 1 has none
    names = [*order, *["run_ids"] * bool(table.run_ids)]
    return csv_text(names, ([row.get(name) for name in names] for row in rows))


def csv_text(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV: whole numbers whole and exact, what is missing empty, texts as `mvar.escaping.spreadsheet` has them."""
    lines: list[str] = []
    # with this terminator, which is taken away again, the writer quotes both kinds of line ends in a text
    target: Any = SimpleNamespace(write=lines.append)
    writer = csv.writer(target, lineterminator="\r\n")
    writer.writerow([spreadsheet(name) for name in names])
    writer.writerows([_csv_value(value) for value in row] for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def _csv_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value != value:
        return ""
    return value if isinstance(value, int | float) else spreadsheet(str(value))


def _column_order(table: Table, name: str) -> tuple[int, str]:
    keys = [column.key for column in table.columns]
    base = name if name in keys else name.rpartition("_")[0]
    return keys.index(base), name[len(base) :]


def to_latex(table: Table) -> str:
    """A `table*` for `\\usepackage{booktabs,graphicx}`, page-wide, footnotes under it, run ids as comments."""
    printed = [column for column in table.columns if column.in_print]
    # "paper (ImageNet 256)" over every printed column would take the width that its numbers need
    heads = [(c.group.split(" (")[0], _tex(c.heading, table.marks(None, c.key))) for c in printed]
    sources = dict.fromkeys(c.group for c in printed if "(" in c.group)
    caption = ". ".join(text.rstrip(".") for text in (table.title, table.caption, *sources) if text)
    columns = pd.MultiIndex.from_tuples(heads)
    cells = [
        [_tex(cell_text(column, row.get(column.key)), table.marks(number, column.key)) for column in printed]
        for number, row in enumerate(table.rows)
    ]
    style = pd.DataFrame(cells, columns=columns).style.hide(axis="index")
    text = style.to_latex(
        hrules=True,
        column_format="".join("l" if column.is_text else "r" for column in printed),
        multicol_align="c",
        environment="table*",
        position_float="centering",
        caption=latex(caption),
        label=f"tab:{table.file}",
    )
    text = text.replace("\\begin{tabular}", f"{SHRINK}{{!}}{{%\n\\begin{{tabular}}")
    notes = "".join(
        f"\n\\par\\textsuperscript{{{letter}}} {inline.to_latex(note)}" for letter, note in table.footnotes()
    )
    notes += "".join(f"\n\\par {inline.to_latex(line)}" for line in table.missing)
    text = text.replace("\\end{tabular}", "\\end{tabular}}\n\\footnotesize" + notes)
    labels = [str(row.get(table.columns[0].key)) for row in table.rows]
    runs = "".join(
        f"% {latex_comment(label)}: {latex_comment(' '.join(ids)) or 'no run'}\n"
        for label, ids in zip(labels, table.run_ids, strict=bool(table.run_ids))
    )
    return f"% \\usepackage{{booktabs,graphicx}}\n{runs}{text}"


SHRINK = r"\resizebox{\ifdim\width>\textwidth \textwidth\else\width\fi}"  # to the page's width, never beyond its own


def latex_document(names: Sequence[str]) -> str:
    """A document that shows the tables of these files, which lie beside it: `pdflatex tables.tex`."""
    inputs = "\n\\clearpage\n".join(f"\\input{{{name}.tex}}" for name in names)
    return (
        "\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage{booktabs,graphicx}\n"
        "\\usepackage[landscape,margin=2cm]{geometry}\n\\begin{document}\n" + inputs + "\n\\end{document}\n"
    )


def _tex(text: str, marks: str = "") -> str:
    return latex(text) + (f"\\textsuperscript{{{marks}}}" if marks else "")
