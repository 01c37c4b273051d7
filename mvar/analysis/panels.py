"""A wide table in panels, one below another, each of which fits a page: none is cut, none has to scroll.

Every panel begins with the columns that tell the table's rows apart. Neighbours under one heading, measured and
printed, stay together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from mvar.analysis.render import Table, cell_text, short
from mvar.runs.columns import Column

PAGE = 660  # px: what a sheet of A4 and a window of 800 px leave
LETTER, BOLD, SMALL, PADDING = 8.2, 9.4, 7.4, 20.0  # px of a letter in a wide font: of cells, headings, runs; of sides
LINE = 26  # letters of a text before it is broken, where it can be


@dataclass(frozen=True)
class Panel:
    """Some of a table's columns; `with_runs`: after them the runs of each row."""

    columns: Sequence[Column]
    with_runs: bool = False


def panels(table: Table) -> list[Panel]:
    """A table's columns in panels that fit; the runs of its rows stand in the last one."""
    begin = row_heads(table)
    taken, runs = sum(width(table, column) for column in begin), _runs_width(table)
    found, others = [[*begin]], table.columns[len(begin) :]
    left = PAGE - taken
    for unit in (list(group) for _, group in groupby(others, key=lambda column: column.heading)):
        needed = sum(width(table, column) for column in unit)
        if needed > left and len(found[-1]) > len(begin):
            found.append([*begin])
            left = PAGE - taken
        found[-1] += unit
        left -= needed
    if runs > left and len(found[-1]) > len(begin):
        found.append([*begin])
    return [Panel(columns, bool(runs) and columns is found[-1]) for columns in found]


def row_heads(table: Table) -> Sequence[Column]:
    """The fewest first columns of text that tell all rows apart; the first one where no number of them does."""
    texts = sum(1 for _ in takewhile(lambda column: column.is_text, table.columns))
    for count in range(1, texts + 1):
        rows = {tuple(cell_text(column, row.get(column.key)) for column in table.columns[:count]) for row in table.rows}
        if len(rows) == len(table.rows):
            return table.columns[:count]
    return table.columns[:1]


def width(table: Table, column: Column) -> float:
    """About the width in px that a column needs: of its longest word, or of a line of text."""
    texts = [cell_text(column, row.get(column.key)) for row in table.rows]
    cells = max((min(len(text), LINE) if column.is_text else len(text) for text in texts), default=0)
    heads = max(BOLD * _longest(column.heading.split()), LETTER * _longest(column.group.split()))
    return max(LETTER * cells, heads) + PADDING


def _runs_width(table: Table) -> float:
    names = [short(run_id) for row in table.run_ids for run_id in row]
    return SMALL * _longest(names) + PADDING if names else 0.0


def _longest(words: Sequence[str]) -> int:
    return max(map(len, words), default=0)
