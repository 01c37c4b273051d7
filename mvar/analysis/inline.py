"""Sentences of the report: `**strong**`, `` `code` `` and links inside the report, nothing else of Markdown.

Everything else in them, whoever wrote it, is shown as it is: no picture, no HTML, no address is ever live. What comes
from users goes through `mvar.escaping.markdown` or `code` where a sentence is made, so that it is shown with its stars.
"""

import html
import re
from functools import cache
from typing import Any

from mvar.escaping import code, latex, markdown_begin, markdown_inside, one_line, printable

INSIDE = re.compile(r"#[^:]*|(tables|figures|\.\./runs)/[^:]*")  # what links may lead to


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    parser: Any = MarkdownIt("zero").enable(["escape", "entity", "backticks", "emphasis", "link"])
    parser.validateLink = lambda target: bool(INSIDE.fullmatch(target))
    return parser


def _tokens(text: str) -> list[Any]:
    (paragraph,) = _parser().parseInline(one_line(text))
    return paragraph.children or []


def prose(text: str) -> str:
    """A sentence made of a message, e.g. a problem: its code spans stay code, everything else is shown as it is."""
    parts = re.split("(`[^`]+`)", one_line(text))
    return "".join(part if number % 2 else markdown_inside(part) for number, part in enumerate(parts))


def to_markdown(text: str) -> str:
    """A sentence as Markdown of its own, on one line."""
    written = []
    targets = []
    for token in _tokens(text):
        if token.type == "code_inline":
            written.append(code(token.content))
        elif token.type in ("strong_open", "strong_close") and token.markup == "**":
            written.append("**")
        elif token.type == "link_open":
            if written and written[-1].endswith("!"):  # or it would be a picture
                written[-1] = written[-1][:-1] + r"\!"
            written.append("[")
            targets.append(token.attrs["href"])
        elif token.type == "link_close":
            written.append(f"]({targets.pop()})")
        else:
            text = markdown_inside(token.content or token.markup)
            written.append(text if written else markdown_begin(text))
    return "".join(written)


def to_cell(text: str) -> str:
    """A sentence, or a code span, as a cell of a Markdown table, where a bar ends a cell even in code."""
    return re.sub(r"(?<!\\)\|", r"\\|", to_markdown(text))


def to_html(text: str) -> str:
    """A sentence as HTML."""
    tags = {"strong_open": "<strong>", "strong_close": "</strong>", "link_close": "</a>"}
    written = []
    for token in _tokens(text):
        if token.type == "code_inline":
            written.append(f"<code>{html.escape(printable(token.content))}</code>")
        elif token.type == "link_open":
            written.append(f'<a href="{html.escape(token.attrs["href"])}">')
        elif token.type in tags and token.markup != "__":
            written.append(tags[token.type])
        else:
            written.append(html.escape(token.content or token.markup))
    return "".join(written)


def to_latex(text: str) -> str:
    """A sentence as LaTeX, in one face."""
    shown = []
    for token in _tokens(text):
        is_markup = token.type.startswith("link") or token.markup == "**"
        shown.append(token.content or ("" if is_markup else token.markup))
    return latex("".join(shown))
