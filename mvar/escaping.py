"""Texts of users and strangers (labels, names of files and classes, reasons) made harmless for where they are shown.

One function an output: `one_line` for terminals, `markdown` and `code`, `latex`, `spreadsheet` (CSV), `figure`,
`file_name` and `link`. HTML is escaped by jinja, and by `markdown` texts that are rendered without raw HTML. What a
function returns is shown as the text that went in, as far as the output can show it.
"""

import codecs
import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, TextIO
from urllib.parse import quote

if TYPE_CHECKING:
    from rich.text import Text

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
MAX_IN_FIGURE = 80  # characters: more have no room beside what is drawn

# Control characters, halves of surrogate pairs (bytes of a name that is not UTF-8), and marks that reorder a line.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")
_SPACE = re.compile(r"\s+")

PLAIN = {"±": "+/-", "×": "x", "÷": "/", "—": "-", "–": "-", "−": "-", "·": "-", "…": "...", "↓": "v", "↑": "^"}
PLAIN |= {"→": "->", "Δ": "d", "≥": ">=", "≤": "<=", "≈": "~", "‘": "'", "’": "'", "“": '"', "”": '"'}
PLAIN |= dict.fromkeys("─━═╸╺", "-") | dict.fromkeys("│┃║", "|") | {"•": "*", "█": "#"}
BOX = ("\u2500", "\u257f")  # the other corners and crossings of boxes


def printable(text: object) -> str:
    """A text without control characters and what is no character at all; tabs and line ends stay."""
    return _CONTROL.sub(UNKNOWN, str(text))


def one_line(text: object) -> str:
    """A text as one line that a terminal shows and does not obey."""
    return _CONTROL.sub(UNKNOWN, _SPACE.sub(" ", str(text))).strip()


def rich_text(text: object, style: str = "") -> "Text":
    """`one_line` as a cell, title or line of rich, in which nothing is markup."""
    from rich.text import Text

    return Text(one_line(text), style)


def ascii_only(text: str) -> str:
    """A text in ASCII: `±` becomes `+/-`, `é` becomes `e`, what has no such form `?`."""
    return "".join(character if character.isascii() else _plain(character) for character in text)


def _plain(character: str) -> str:
    if BOX[0] <= character <= BOX[1]:
        return PLAIN.get(character, "+")
    return PLAIN.get(character) or unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def degrade(stream: TextIO | None) -> None:
    """From now on a stream writes what its encoding lacks as `ascii_only` does, instead of raising."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="mvar.degrade")


def _degraded(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return ascii_only(error.object[error.start : error.end]), error.end


codecs.register_error("mvar.degrade", _degraded)


# Files and links ----------------------------------------------------------------------------------------------------


def file_name(name: str) -> str:
    """A name for a file, an anchor or a LaTeX label: letters, digits, `._+-`; what is changed gets a digest of it."""
    kept = re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".")[:200]
    return name if name and kept == name else f"{kept}-{hashlib.sha256(_bytes(name)).hexdigest()[:8]}"


def link(path: str) -> str:
    """A relative path as the target of a link."""
    return quote(_bytes(path), safe="/+")


def _bytes(name: str) -> bytes:
    """A name's bytes as the system has them; halves of surrogate pairs that no file's name has are kept as they are."""
    try:
        return name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return name.encode(errors="surrogatepass")


# Markdown -----------------------------------------------------------------------------------------------------------


def markdown(text: object) -> str:
    """A text as a line, or a table's cell, of Markdown: nothing in it is markup, a link, a picture or HTML."""
    return markdown_begin(markdown_inside(one_line(text)))


def markdown_inside(line: str) -> str:
    """`markdown` of a part of a line, its spaces kept."""
    line = re.sub(r"&(?=#?\w+;)", "&amp;", printable(line)).replace("<", "&lt;")
    line = re.sub(r"([\\`*~$|])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    line = re.sub(r"\](?=[(\[:])", r"\\]", line).replace("](", r"]\(")  # links, twice: not all read backslashes
    line = re.sub(r"(?<=!)\[|\[(?=\^)", r"\\[", line)  # pictures, footnotes
    line = re.sub(r"(?i)\b(https?|ftp)(?=://)", r"\1\\", line)  # GitHub makes links of bare addresses
    return re.sub(r"(?i)\bwww(?=\.)", r"www\\", line)


def markdown_begin(line: str) -> str:
    """A line of Markdown that does not begin a heading, a quotation, a list or a task."""
    return re.sub(r"^(\d*)([#>+\-=.)\[])", _first_escaped, line)


def _first_escaped(found: re.Match) -> str:
    digits, mark = found.groups()
    begins_block = mark in ".)" if digits else mark in "#>+-=["
    return f"{digits}\\{mark}" if begins_block else found[0]


def code(text: object) -> str:
    """A text as a code span of Markdown; in a table's cell its bars need a backslash besides."""
    line = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


# LaTeX --------------------------------------------------------------------------------------------------------------

LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[]*"},  # after `\\` they would be its arguments
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\`{}",
    '"': "''",
    "|": r"\textbar{}",
    "<": "$<$",
    ">": "$>$",
}
LATEX_SIGNS = {
    "±": r"$\pm$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "—": r"\textemdash{}",
    "–": r"\textendash{}",
    "−": "$-$",
    "²": "$^2$",
    "Δ": r"$\Delta$",
}


def latex(text: object) -> str:
    """A text in a line of LaTeX, in ASCII: no command, no comment, nothing that pdflatex could not print."""
    shown = "".join(LATEX_SIGNS.get(c) or "".join(LATEX.get(p, p) for p in ascii_only(c)) for c in one_line(text))
    return re.sub("-(?=-)", "-{}", shown)  # an option of a command, no dash


def latex_comment(text: object) -> str:
    """A text behind a `%`: it ends with its line, and holds no command even for whoever takes the `%` away."""
    return ascii_only(one_line(text)).replace("\\", LATEX["\\"])


# CSV and figures ----------------------------------------------------------------------------------------------------


def spreadsheet(text: str) -> str:
    """A text as a cell of CSV: what a spreadsheet would compute gets an apostrophe in front, numbers stay numbers."""
    text = re.sub("[\ud800-\udfff]", UNKNOWN, text)
    computed = re.match(r"\s*[=+\-@＝＋－＠]|[\t\r\n]", text)
    return f"'{text}" if computed and not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", text, re.I) else text


def figure(text: object, limit: int = MAX_IN_FIGURE) -> str:
    """A text in a figure of matplotlib: dollar signs are no mathematics, a label that begins with `_` is shown."""
    line = one_line(text)
    if len(line) > limit:
        line = line[: limit - 1] + "…"
    hidden = "\N{ZERO WIDTH SPACE}" if line.startswith("_") else ""
    return hidden + line.replace("$", r"\$")
