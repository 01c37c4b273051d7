"""The report as a value: sections of text, tables and figures, which `report.md` and `report.html` show alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mvar import layout
from mvar.analysis import inline
from mvar.analysis.render import Table, to_markdown
from mvar.analysis.style import Figure
from mvar.escaping import link, markdown, printable


@dataclass(frozen=True)
class Text:
    """A paragraph; a sentence of `mvar.analysis.inline`."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list, with a bold heading if there is one; sentences of `mvar.analysis.inline`."""

    items: Sequence[str]
    heading: str = ""


MAX_COMMANDS = 2  # in the line of a folded section; all of them stand below its table
Block = Text | Bullets | Table | Figure


@dataclass
class Section:
    """A heading, plain text, and what stands under it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2

    @property
    def anchor(self) -> str:
        """What links lead to, as GitHub makes it of the title."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")

    @property
    def folded(self) -> str:
        """The one line that stands for a section whose tables want runs of which none is there; else nothing."""
        tables = [block for block in self.blocks if isinstance(block, Table)]
        wanted = [line for table in tables for line in table.missing]
        if not wanted or any(run_ids for table in tables for run_ids in table.run_ids):
            return ""
        commands = list(dict.fromkeys(found for line in wanted for found in re.findall("Command: (`[^`]+`)", line)))
        more = f" and {len(commands) - MAX_COMMANDS} more" if len(commands) > MAX_COMMANDS else ""
        return f"Not run yet: {', '.join(commands[:MAX_COMMANDS])}{more}" if commands else "Not run yet"


def run_link(run_id: str) -> str:
    """A run's directory as seen from the report's."""
    return f"../{layout.RUNS}/{link(run_id)}/"


def document_to_markdown(sections: Sequence[Section]) -> str:
    """The whole report for GitHub and editors."""
    lines: list[str] = []
    for section in sections:
        lines += [f"{'#' * section.level} {markdown(section.title)}", ""]
        inside = [line for block in section.blocks for line in (*_block(block), "")]
        if section.folded:
            told = f"<summary>{inline.to_html(section.folded)}</summary>"
            inside = ["<details>", told, "", *inside, "</details>", ""]
        lines += inside
    return printable("\n".join(lines).rstrip() + "\n")


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [inline.to_markdown(block.text)]
    if isinstance(block, Bullets):
        heading = [f"**{markdown(block.heading)}**", ""] if block.heading else []
        return [*heading, *(f"- {inline.to_markdown(item)}" for item in block.items)]
    if isinstance(block, Figure):
        title, caption = markdown(block.title), markdown(block.caption)
        told = f"*{title}.* {caption} [pdf](figures/{block.file}.pdf)"
        return [f"![{title}](figures/{block.file}.png)", "", told]
    lines = [to_markdown(block, run_link)]
    if block.reading:
        lines += ["", *_block(Bullets(block.reading, "How to read this"))]
    return [*lines, "", "Files: " + " · ".join(f"[{kind}](tables/{block.file}.{kind})" for kind in ("csv", "tex"))]
