"""The report as one HTML page that can be sent to somebody: pictures inside, no script, nothing fetched."""

from base64 import b64encode
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mvar import layout
from mvar.analysis import inline
from mvar.analysis.compare import DASH
from mvar.analysis.document import Bullets, Section, Text, run_link
from mvar.analysis.render import Table, cell_text, short
from mvar.analysis.style import Figure
from mvar.escaping import one_line, printable

TEMPLATE = "page.html.jinja"
MAX_TOLD = 8  # run ids in a tooltip
MAX_LINKS = 3  # run links in a row that are seen at once; the others unfold


def document_to_html(sections: Sequence[Section], directory: Path) -> str:
    """The page.

    Args:
        sections: of the report.
        directory: the report's, where `figures/` are.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["inline"] = inline.to_html
    shown = [
        {"section": section, "blocks": [_shown(block, directory) for block in section.blocks]} for section in sections
    ]
    return printable(environment.get_template(TEMPLATE).render(sections=shown, title=sections[0].title))


def _shown(block: Any, directory: Path) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"kind": "text", "text": block.text}
    if isinstance(block, Bullets):
        return {"kind": "bullets", "heading": block.heading, "items": block.items}
    if isinstance(block, Figure):
        picture = b64encode((directory / layout.FIGURES / f"{block.file}.png").read_bytes()).decode()
        return {"kind": "figure", "figure": block, "source": f"data:image/png;base64,{picture}"}
    return {"kind": "table", "table": block, "groups": _groups(block), "rows": _rows(block), "heads": _heads(block)}


def _groups(table: Table) -> list[dict[str, Any]]:
    """The upper row of the head: neighbouring columns of one group together."""
    found = [(group, len(list(columns))) for group, columns in groupby(c.group for c in table.columns)]
    return [{"name": name, "span": span, "kind": _kind(name)} for name, span in found]


def _heads(table: Table) -> list[dict[str, Any]]:
    return [
        {"text": c.heading, "marks": table.marks(None, c.key), "kind": _kind(c.group), "is_text": c.is_text}
        for c in table.columns
    ]


def _kind(group: str) -> str:
    return group.split(" ")[0] or "plain"  # measured, analytic, paper or plain: a class of the style sheet


def _rows(table: Table) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(table.rows):
        cells = []
        for column in table.columns:
            runs = table.runs_of(number, column.key)
            cells.append(
                {
                    "text": one_line(cell_text(column, row.get(column.key))),
                    "marks": table.marks(number, column.key),
                    "kind": _kind(column.group),
                    "is_text": column.is_text,
                    "is_code": column.is_code,
                    "title": _told(runs),
                    "link": run_link(runs[0]) if len(runs) == 1 else "",
                }
            )
        ids = table.run_ids[number] if table.run_ids else ()
        links = [{"text": short(run_id), "link": run_link(run_id), "title": run_id} for run_id in ids]
        rows.append({"cells": cells, "links": links[:MAX_LINKS], "more": links[MAX_LINKS:], "dash": DASH})
    return rows


def _told(runs: Sequence[str]) -> str:
    """The runs behind a cell, as its tooltip."""
    more = f" and {len(runs) - MAX_TOLD} more" if len(runs) > MAX_TOLD else ""
    return f"from {', '.join(runs[:MAX_TOLD])}{more}" if runs else ""
