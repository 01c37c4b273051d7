"""Pages of the documentation that are made of something else: the command line's help, and files beside this folder."""

import io
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
COPIED = {
    "run-directory.md": "results/README.md",
    "profiles.md": "slurm/README.md",
    "examples.md": "examples/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    pages = {name: _outside((ROOT / path).read_text()) for name, path in COPIED.items()}
    for name, text in {"cli.md": command_line(), **pages}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A link to a file of the repository that is no page here becomes its name."""
    return re.sub(r"\[([^\]]*)\]\(\.\./(?!#)[^)]*\)", r"\1", markdown)


def _outside(text: str) -> str:
    """Links of a file of the repository, as they are from here."""
    text = re.sub(r"\]\((?:\.\./)?docs/([^)]*)\)", r"](\1)", text)
    for name, path in COPIED.items():
        text = text.replace(f"]({path})", f"]({name})")
    return re.sub(r"\]\((?!https?:|#|[a-z-]+\.md(?:#|\)))([^)]*)\)", r"](../\1)", text)


def command_line() -> str:
    """Every command's help, as it prints it."""
    from mvar.cli import GROUPS, parse
    from mvar.commands.overview import name_of, overview

    lines = ["# Command line", "", "```", overview(GROUPS), "```", ""]
    for title, commands in GROUPS.items():
        lines += [f"## {title}", ""]
        for command in commands:
            out = io.StringIO()
            with redirect_stdout(out), suppress(SystemExit):
                parse([name_of(command), "--help"])
            lines += [f"### mvar {name_of(command)}", "", "```", out.getvalue().strip(), "```", ""]
    return "\n".join(lines)
