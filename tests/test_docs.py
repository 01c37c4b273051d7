"""The documentation: every command line in it is one that the command line takes; the README stays short."""

import re
import shlex
from pathlib import Path

import pytest

from mvar.cli import COMMANDS, parse
from mvar.errors import UserError
from mvar.registries import MIXERS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "slurm").glob("*.md"),
    *(ROOT / "results").glob("*.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEAST = {"laptop.md": 20, "cluster.md": 6, "configuration.md": 5, "imagenet.md": 2}  # commands, so that none is missed


def commands(page: Path) -> list[str]:
    """Lines of a page's blocks that call `mvar`, without their comments."""
    blocks = [text for language, text in BLOCK.findall(page.read_text()) if language in ("", "sh", "bash", "console")]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    found = [line.removeprefix("$ ") for line in lines]
    return [line for line in found if re.match(r"mvar +[a-z]", line) and not line.startswith("mvar: ")]


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_command_line_is_one(page):
    lines = commands(page)
    assert len(lines) >= LEAST.get(page.name, 0)
    for line in lines:
        try:
            parsed = parse(words(line))
        except (UserError, SystemExit) as error:
            pytest.fail(f"{line}: {error}")
        assert type(parsed) is COMMANDS[words(line)[0]]


def test_the_readme_is_short():
    """GitHub's first screen; what is longer is a page of docs/."""
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 12_000
    assert text.index("make demo") < 4_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    made = {"cli.md", "api.md", "run-directory.md", "profiles.md", "examples.md", "changelog.md"}
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", text):
        assert target in made or (page.parent / target).exists(), f"{page.name}: {target}"


def test_pages_are_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in menu] == []


def test_every_mixer_has_its_row():
    page = (ROOT / "docs/mixers.md").read_text()
    assert [name for name in MIXERS.paths if not re.search(rf"^\| `{name}[`:]", page, re.MULTILINE)] == []
