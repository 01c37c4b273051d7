"""The report as one HTML page that can be sent to somebody: pictures inside, no script, nothing fetched."""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import unescape
from itertools import groupby
from pathlib import Path
from typing import Any

from mvar import layout
from mvar.analysis import inline
from mvar.analysis.compare import DASH
from mvar.analysis.document import Bullets, Section, Text, run_link
from mvar.analysis.panels import Panel, panels
from mvar.analysis.render import Table, cell_text, short
from mvar.analysis.style import DARK, DPI, SCREEN_DPI, Figure
from mvar.escaping import one_line, printable

TEMPLATE = "page.html.jinja"
LINKED = re.compile(rf'href="((?:{layout.TABLES}|{layout.FIGURES})/([^"/]+))"')
KINDS = {".png": "image/png", ".pdf": "application/pdf", ".csv": "text/csv", ".tex": "application/x-tex"}
SHORT_WORD = 14  # characters
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
    environment.filters |= {"inline": inline.to_html, "has_short_words": has_short_words}
    shown = [
        {"section": section, "blocks": [_shown(block, directory) for block in section.blocks]} for section in sections
    ]
    html = printable(environment.get_template(TEMPLATE).render(sections=shown, title=sections[0].title))
    return _with_files(html, directory)


def has_short_words(text: str) -> bool:
    """Whether a cell's text can be told to keep its words whole: a run's id, say, must break somewhere."""
    return all(len(word) <= SHORT_WORD for word in text.split())


def _shown(block: Any, directory: Path) -> dict[str, Any]:
    if isinstance(block, Text):
        return {"kind": "text", "text": block.text}
    if isinstance(block, Bullets):
        return {"kind": "bullets", "heading": block.heading, "items": block.items}
    if isinstance(block, Figure):
        pictures = [directory / layout.FIGURES / f"{block.file}{suffix}" for suffix in (".png", DARK)]
        light, dark = (_data(path) if path.is_file() else "" for path in pictures)
        return {"kind": "figure", "figure": block, "source": light, "dark": dark, "width": _width(pictures[0])}
    return {"kind": "table", "table": block, "panels": [_panel(block, panel) for panel in panels(block)]}


def _width(path: Path) -> int:
    """Of a .png on the page in px: one drawn twice as wide is as sharp on finer screens."""
    header = path.read_bytes()[:24] if path.is_file() else b""
    return int.from_bytes(header[16:20], "big") * SCREEN_DPI // DPI


def _data(path: Path) -> str:
    """A file as an address that holds it."""
    return f"data:{KINDS[path.suffix]};base64,{b64encode(path.read_bytes()).decode()}"


def _with_files(html: str, directory: Path) -> str:
    """Tables and figures that the page links lie inside it: it can be sent to somebody without them."""

    def held(match: re.Match[str]) -> str:
        path = directory / unescape(match[1])
        return f'download="{match[2]}" href="{_data(path)}"' if path.is_file() else match[0]

    return LINKED.sub(held, html)


def _panel(table: Table, panel: Panel) -> dict[str, Any]:
    heads = [
        {"text": c.heading, "marks": table.marks(None, c.key), "kind": _kind(c.group), "is_text": c.is_text}
        for c in panel.columns
    ]
    return {"groups": _groups(panel), "heads": heads, "rows": _rows(table, panel), "with_runs": panel.with_runs}


def _groups(panel: Panel) -> list[dict[str, Any]]:
    """The upper row of the head: neighbouring columns of one group together; none where no column has one."""
    found = [(group, len(list(columns))) for group, columns in groupby(c.group for c in panel.columns)]
    shown = [{"name": name, "span": span, "kind": _kind(name)} for name, span in found]
    return shown if any(name for name, _ in found) else []


def _kind(group: str) -> str:
    return group.split(" ")[0] or "plain"  # measured, analytic, paper or plain: a class of the style sheet


def _rows(table: Table, panel: Panel) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(table.rows):
        cells = []
        for column in panel.columns:
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
                    "head": " · ".join(text for text in (column.heading, column.group) if text),
                }
            )
        ids = table.run_ids[number] if panel.with_runs else ()
        links = [{"text": short(run_id), "link": run_link(run_id), "title": run_id} for run_id in ids]
        rows.append({"cells": cells, "links": links[:MAX_LINKS], "more": links[MAX_LINKS:], "dash": DASH})
    return rows


def _told(runs: Sequence[str]) -> str:
    """The runs behind a cell, as its tooltip."""
    more = f" and {len(runs) - MAX_TOLD} more" if len(runs) > MAX_TOLD else ""
    return f"from {', '.join(runs[:MAX_TOLD])}{more}" if runs else ""
