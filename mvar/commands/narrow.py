"""Tables that fit the terminal: names of runs are cut to what tells them apart, columns left out; or it is broken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mvar.escaping import rich_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Column = tuple[str, Sequence[str]]  # a title and its cells
BORDER = 3  # characters of a column besides its text


@dataclass(frozen=True)
class Narrow:
    """How a table of runs is cut where there is little room."""

    heading: str  # of the names
    dispensable: Sequence[str] = ()  # columns that it goes without, in this order
    breakable: Mapping[str, int] = field(
        default_factory=dict
    )  # columns whose text may be broken into lines, and to how many characters

    def fit(
        self, names: Sequence[str], columns: Mapping[str, Sequence[str]], width: int, short: Callable[[], list[str]]
    ) -> tuple[Sequence[str], dict[str, Sequence[str]], str]:
        """Names and columns that fit a width, and a line that says what is not there; empty where all is.

        Args:
            names: of the rows.
            columns: cells by title.
            width: characters that there are.
            short: makes the names to be used where these do not fit.
        """
        columns, said, gone = dict(columns), [], []
        if self._width(names, columns) > width:
            names, given = short(), names
            said += ["names are shortened"] if names != list(given) else []
            for title in self.dispensable:
                if title in columns and self._width(names, columns) > width:
                    del columns[title]
                    gone.append(title)
            said += [f"{', '.join(gone)} {'are' if len(gone) > 1 else 'is'} left out"] if gone else []
        return names, columns, f"({'; '.join(said)}; --json has everything)" if said else ""

    def table(self, ids: Sequence[str], columns: Mapping[str, Sequence[str]], console: "Console") -> "RenderableType":
        """A table of runs by their ids, cut to fit; its columns are words where they may be broken, else numbers."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        names, columns, left_out = self.fit(ids, columns, console.width, lambda: shortened_ids(ids))
        table = Table()
        table.add_column(self.heading, no_wrap=True)
        for title in columns:
            is_words = title in self.breakable
            table.add_column(title, justify="left" if is_words else "right", no_wrap=not is_words, overflow="fold")
        for number, name in enumerate(names):
            table.add_row(rich_text(name), *(rich_text(cells[number]) for cells in columns.values()))
        return Group(table, Text(left_out, "dim")) if left_out else table

    def _width(self, names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> int:
        wide = {title: max(map(len, (title, *cells))) for title, cells in columns.items()}
        wide |= {title: min(wide[title], least) for title, least in self.breakable.items() if title in wide}
        return 1 + BORDER + max(map(len, (*names, self.heading))) + sum(one + BORDER for one in wide.values())


def print_in_parts(columns: Sequence[Column], console: "Console", title: str = "", section: int = 0) -> None:
    """A table; where it is wider than the console in parts, one below another, each of which begins with the first
    column.

    Args:
        columns: titles and cells; the first are words, the others numbers.
        console: where to.
        title: above the table.
        section: how many of the last rows stand below a line.
    """
    from rich import box
    from rich.table import Table

    said = rich_text(title) if title else None
    for part in in_parts(columns, console.width):
        table = Table(title=said, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        is_tight = sum(max(len(name), wide) + BORDER for (name, _), wide in part) > console.width
        for number, ((name, _), wide) in enumerate(part):
            justify = "right" if number else "left"
            table.add_column(
                rich_text(name), justify=justify, vertical="bottom", width=wide if is_tight else None, overflow="fold"
            )
        rows = list(zip(*(cells for (_, cells), _ in part), strict=True))
        for number, cells in enumerate(rows):
            if section and number == len(rows) - section:
                table.add_section()
            table.add_row(*map(rich_text, cells))
        console.print(table)
        said = None


def in_parts(columns: Sequence[Column], width: int) -> list[list[tuple[Column, int]]]:
    """The columns of a table in parts that fit a width, each of which begins with the first; and the characters that
    each needs. Titles may be broken between words."""
    first, *others = [(column, max(map(len, (*column[0].split(), *column[1])))) for column in columns]
    parts, left = [[first]], width - first[1] - BORDER
    for column in others:
        if column[1] + BORDER > left and len(parts[-1]) > 1:
            parts.append([first])
            left = width - first[1] - BORDER
        parts[-1].append(column)
        left -= column[1] + BORDER
    return parts


def shortened_ids(ids: Sequence[str]) -> list[str]:
    """Ids of runs without the parts that all share, and without the digest where they differ without it."""
    parts = [one.split("-") for one in ids]
    if len(parts) > 1 and len(set(map(len, parts))) == 1:
        differ = [number for number, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
        without = [number for number in differ if number < len(parts[0]) - 1]
        is_enough = len({tuple(part[number] for number in without) for part in parts}) == len(parts)
        parts = [[part[number] for number in (without if is_enough else differ)] for part in parts]
    return ["-".join(part) for part in parts]
