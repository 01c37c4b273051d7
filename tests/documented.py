"""The commands of the documentation, and what is marked in its Markdown about how a test runs them.

Every line of a code block that calls `mvar`, or a script of `analysis/`, is run, at rehearsal size. What cannot be is
marked by a comment above the block, of which `docs/pages.py` makes a line below it:

    <!-- dry run: mvar submit -->
    <!-- only parsed: mvar cancel RUN: there is no SLURM -->

A mark holds for the commands that begin with its words; `only parsed` also says why. Commands inside sentences are
parsed where they have all their arguments; of lines that call `make`, or a benchmark, targets and options are checked.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "slurm").glob("*.md"),
    *(ROOT / "results").glob("*.md"),
    *(ROOT / "examples").glob("*.md"),
]
BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(mvar\s+[^`]+)`")
BESIDE = re.compile(r"^(?:\$ )?(make(?: |$)[^\n#]*|python -m benchmarks\.[^\n#]*)", re.MULTILINE)
MARK = re.compile(r"<!-- (dry run|only parsed): (.*) -->")
RUN, DRY, PARSED = "run", "dry run", "only parsed"


@dataclass(frozen=True)
class Documented:
    """A command of a page."""

    page: str
    line: str  # as it stands there, without a prompt and a comment
    how: str  # RUN, DRY or PARSED
    mistake: str = ""  # the line that it is said to answer with: a mistake of the user's

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[Documented]:
    """The commands of a page's blocks, in order.

    Raises:
        AssertionError: a mark that no command of its block begins with, or without a reason.
    """
    found = []
    for marks, language, text in BLOCK.findall(page.read_text()):
        if language in ("", "sh", "bash", "console"):
            found += _of_block(name(page), MARK.findall(marks), text.replace("\\\n", " ").splitlines())
    return found


def inline(page: Path) -> list[str]:
    """The commands inside the sentences and tables of a page."""
    return [" ".join(found.split()) for found in INLINE.findall(BLOCK.sub("", page.read_text()))]


def beside(page: Path) -> list[list[str]]:
    """The words of the lines of its blocks that call `make` or a benchmark."""
    lines = (line for _, _, text in BLOCK.findall(page.read_text()) for line in BESIDE.findall(text))
    return [shlex.split(line) for line in lines]


def _of_block(page: str, marks: list[tuple[str, str]], lines: list[str]) -> list[Documented]:
    said, unused = [], set(marks)
    for number, line in enumerate(lines):
        line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
        if not re.match(r"mvar( +[a-z]|\s*(#|$))|python analysis/", line):
            continue
        command, how = shlex.join(shlex.split(line, comments=True)), RUN
        for mark in marks:
            kind, text = mark
            begin, _, why = text.partition(": ")
            assert why or kind == DRY, f"{page}: {text}: a mark says why"
            if line.startswith(begin):
                how = kind
                unused.discard(mark)
        after = lines[number + 1] if number + 1 < len(lines) else ""
        said.append(Documented(page, command, how, after.strip() if after.startswith("mvar: error: ") else ""))
    assert not unused, f"{page}: no command begins so: {unused}"
    return said
