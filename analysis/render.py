"""A table as a value, and its three forms: Markdown to read, CSV to compute with, LaTeX (booktabs) to print."""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.compare import DASH, Measured

MEASURED, ANALYTIC = "measured", "analytic"
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float) -> str:
    """Three significant digits with an SI prefix, e.g. 1.24 T."""
    for size, prefix in PREFIXES:
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Column:
    """A column: the key of its values in a row, its heading, who says so, and how a number is written.

    `group` is `measured`, `analytic`, `paper (...)` or empty. `decimals` applies to floats and `Measured`; None writes
    them with an SI prefix. `factor` is applied first (100 for shares in percent).
    """

    key: str
    heading: str
    group: str = ""
    decimals: int | None = 2
    factor: float = 1.0

    def text(self, value: Any) -> str:
        """A cell as text; a dash for what is not there."""
        if value is None:
            return DASH
        if isinstance(value, Measured):
            return si(value.mean * self.factor) if self.decimals is None else value.text(self.decimals, self.factor)
        if isinstance(value, int | float) and self.decimals is None:
            return si(value * self.factor)
        if isinstance(value, float):
            return f"{value * self.factor:.{self.decimals}f}"
        return str(value)


@dataclass(frozen=True)
class Note:
    """A footnote on one cell; `row` None: on the column's heading."""

    row: int | None
    column: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of values by column key; `run_ids` has the runs behind each row. `reading` says how to read it, computed."""

    name: str  # the file's, e.g. `mixers-digits-steps`
    title: str
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    run_ids: Sequence[Sequence[str]]
    notes: Sequence[Note] = ()
    reading: Sequence[str] = field(default_factory=list)

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
    lines = ["| " + " | ".join([*headings, "runs"]) + " |"]
    lines.append("|" + "|".join([" :-- ", *[" --: "] * (len(headings) - 1), " :-- "]) + "|")
    for number, (row, run_ids) in enumerate(zip(table.rows, table.run_ids, strict=True)):
        cells = [marked(c.text(row.get(c.key)), table.marks(number, c.key)) for c in table.columns]
        runs = " ".join(f"[{short(run_id)}]({link(run_id)})" for run_id in run_ids) or DASH
        lines.append("| " + " | ".join([*cells, runs]) + " |")
    notes = [f"<sup>{letter}</sup> {text}" for letter, text in table.footnotes()]
    return "\n".join(lines) + "\n" + "".join(f"\n{note}  " for note in notes)


def short(run_id: str) -> str:
    """Seed and hash of a run id, enough to find it: `s0-1a2b3c4d`."""
    return "-".join(run_id.split("-")[-2:])


def to_csv(table: Table) -> str:
    """Plain numbers by key: a measured quantity has `_sd` and `_n` columns beside it; the last one has the run ids."""
    rows = []
    for row, run_ids in zip(table.rows, table.run_ids, strict=True):
        flat: dict[str, Any] = {}
        for column in table.columns:
            value = row.get(column.key)
            if isinstance(value, Measured):
                flat |= {column.key: value.mean, f"{column.key}_sd": value.sd, f"{column.key}_n": value.n}
            else:
                flat[column.key] = value
        rows.append(flat | {"run_ids": " ".join(run_ids)})
    names = list(dict.fromkeys(name for row in rows for name in row if name != "run_ids"))
    order = sorted(names, key=lambda name: _column_order(table, name))  # an sd beside its mean, even if row 1 has none
    return pd.DataFrame(rows, columns=[*order, "run_ids"]).to_csv(index=False)


def _column_order(table: Table, name: str) -> tuple[int, str]:
    keys = [column.key for column in table.columns]
    base = name if name in keys else name.removesuffix("_sd").removesuffix("_n")
    return keys.index(base), name[len(base) :]


def to_latex(table: Table) -> str:
    """A `table*` for `\\usepackage{booktabs,graphicx}`, page-wide, footnotes under it, run ids as comments."""
    columns = pd.MultiIndex.from_tuples([(c.group, _tex(c.heading, table.marks(None, c.key))) for c in table.columns])
    cells = [
        [_tex(column.text(row.get(column.key)), table.marks(number, column.key)) for column in table.columns]
        for number, row in enumerate(table.rows)
    ]
    style = pd.DataFrame(cells, columns=columns).style.hide(axis="index")
    text = style.to_latex(
        hrules=True,
        column_format="l" + "r" * (len(table.columns) - 1),
        multicol_align="c",
        environment="table*",
        position_float="centering",
        caption=_tex(table.title),
        label=f"tab:{table.name}",
    )
    text = text.replace("\\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}")
    notes = "".join(f"\n\\par\\textsuperscript{{{letter}}} {_tex(note)}" for letter, note in table.footnotes())
    text = text.replace("\\end{tabular}", "\\end{tabular}}\n\\footnotesize" + notes)
    labels = [str(row.get(table.columns[0].key)) for row in table.rows]
    runs = "".join(
        f"% {label}: {' '.join(ids) or 'no run'}\n" for label, ids in zip(labels, table.run_ids, strict=True)
    )
    return f"% \\usepackage{{booktabs,graphicx}}\n{runs}{text}"


SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "—": "--",
}


def _tex(text: str, marks: str = "") -> str:
    escaped = "".join(SPECIAL.get(character, character) for character in text)
    return escaped + (f"\\textsuperscript{{{marks}}}" if marks else "")
