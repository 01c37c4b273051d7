"""The report as a value: sections of text, tables and figures, which `report.md` and `report.html` show alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from analysis.render import Table, to_markdown
from analysis.style import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph; inline Markdown."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list, with a bold heading if there is one; inline Markdown."""

    items: Sequence[str]
    heading: str = ""


Block = Text | Bullets | Table | Figure


@dataclass
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2

    @property
    def anchor(self) -> str:
        """What links lead to, as GitHub makes it of the title."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def run_link(run_id: str) -> str:
    """A run's directory as seen from the report's."""
    return f"../runs/{run_id}/"


def document_to_markdown(sections: Sequence[Section]) -> str:
    """The whole report for GitHub and editors."""
    lines: list[str] = []
    for section in sections:
        lines += [f"{'#' * section.level} {section.title}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [block.text]
    if isinstance(block, Bullets):
        return [*([f"**{block.heading}**", ""] if block.heading else []), *(f"- {item}" for item in block.items)]
    if isinstance(block, Figure):
        told = f"*{block.title}.* {block.caption} [pdf](figures/{block.name}.pdf)"
        return [f"![{block.title}](figures/{block.name}.png)", "", told]
    lines = [to_markdown(block, run_link)]
    if block.reading:
        lines += ["", *_block(Bullets(block.reading, "How to read this"))]
    return [*lines, "", "Files: " + " · ".join(f"[{kind}](tables/{block.name}.{kind})" for kind in ("csv", "tex"))]
