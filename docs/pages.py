"""Pages of the documentation that are made of something else: of the code (the command line's help, fields of a config,
metrics), and of files beside this folder."""

import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
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
OFFICIAL = "<!-- the figures of benchmarks/results/official.json -->"

MARK = re.compile(r"<!-- (dry run|only parsed): (.*) -->")
FILE = re.compile(r"^<!-- file: (\S+) -->$", re.MULTILINE)
MARKED = re.compile(r"((?:^<!-- (?:dry run|only parsed): [^\n]* -->\n)+)^```\w*\n.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    pages = {name: _outside((ROOT / path).read_text()) for name, path in COPIED.items()}
    for name, text in {**{name: make() for name, make in MADE.items()}, **pages}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A link to a file of the repository that is no page here becomes its name; stored figures get their place; it is
    said how tests run a block of commands."""
    markdown = markdown.replace(OFFICIAL, beside_the_official_code(ROOT / "benchmarks/results/official.json"))
    linked = re.sub(r"\[([^\]]*)\]\(\.\./(?!#)[^)]*\)", r"\1", markdown)
    return FILE.sub(_whole_file, MARKED.sub(_with_marks, linked))


def _whole_file(place: re.Match[str]) -> str:
    """A file of the repository as a block."""
    path = ROOT / place[1]
    return f"```{path.suffix[1:].replace('py', 'python')}\n{path.read_text().rstrip()}\n```"


def _with_marks(block: re.Match[str]) -> str:
    """A block of commands, and below it how tests run them where they do not as they stand there."""
    marks = [(kind, *text.partition(": ")[::2]) for kind, text in MARK.findall(block[1])]
    dry = [f"`{line}`" for kind, line, _ in marks if kind == "dry run"]
    parsed = [f"`{line}` ({why})" for kind, line, why in marks if kind != "dry run"]
    told = [f"only plan {', '.join(dry)}"] * bool(dry) + [f"only parse {', '.join(parsed)}"] * bool(parsed)
    how = f"Tests run such blocks at rehearsal size. Of this one they {', and '.join(told)}."
    return f"{block[0]}\n\n<small>{how}</small>\n"


def beside_the_official_code(path: Path) -> str:
    """The table of what `benchmarks.official` has stored; a sentence where it has not."""
    if not path.is_file():
        return "It has not been run on a machine without other work yet."
    found = json.loads(path.read_text())
    machine, settings = found["machine"], found["settings"]
    size = f"depth {settings['depth']}, width {settings['width']}, {settings['resolution']} px"
    lines = [f"{machine['cpu']}, threads: {machine['threads']}, torch {machine['torch']}; {size}, "]
    lines[0] += f"batch {settings['batch']}, fp32, medians of {settings['repeats']}. Where an aim is missed, the last "
    lines[0] += "columns are the share of our time that its matrix products would take at the rate of a large one, and "
    lines[0] += "how many times faster it would be if that were all of its time."
    lines += ["", "| model | work | official, s | ours, s | times faster | aim | of ours: products | products alone |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|")
    for row in found["rows"]:
        share, bound = f"{row['products_share']:.0%}", f"{row['ratio'] / row['products_share']:.2f}"
        missed = [share, bound] if row["ratio"] < row["aim"] else ["", ""]
        times = " | ".join(f"{row[name]:.2f}" for name in ("official_s", "ours_s", "ratio", "aim"))
        lines.append(f"| {row['model']} | {row['work']} | {times} | {' | '.join(missed)} |")
    return "\n".join(lines)


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


# Reference that is made of the code ---------------------------------------------------------------------------------


def fields() -> str:
    """Every field of a config, the presets, and what can be chosen by name, with settings."""
    from mvar.config.allowed import typed
    from mvar.config.described import fields_of
    from mvar.presets import PRESETS

    found = fields_of(PRESETS["digits"])
    out = io.StringIO()
    with redirect_stdout(out):
        from mvar.cli import main

        main(["config", "presets"])
    lines = [
        "# Every field of a config",
        "",
        *FIELDS_BEGIN,
        "## Presets",
        "",
        "```",
        out.getvalue().rstrip(),
        "```",
        "",
    ]
    for section in dict.fromkeys(field.name.rpartition(".")[0] for field in found):
        rows = [
            (f"`{field.name}`", f"`{typed(field.default)}`", field.allowed, field.description)
            for field in found
            if field.name.rpartition(".")[0] == section
        ]
        lines += [f"## {section or 'The run'}", "", *table(("field", "default", "allowed", "what it is"), rows), ""]
    return "\n".join([*lines, *by_name()])


def by_name() -> Iterable[str]:
    """Every kind of part, its names, and the settings of probes, which stand in no config."""
    from mvar.commands.probe import described
    from mvar.registries import KINDS, PROBES

    where = {"mixer": "model.pattern", "metric": "evaluation.also", "executor": "executor", "probe": "mvar probe NAME"}
    rows = [(kind, f"`{where.get(kind, one.field)}`", names(one.names())) for kind, one in KINDS.items()]
    yield from ["## Chosen by name", "", *table(("kind", "where", "names"), rows), ""]
    for name in PROBES.names():
        settings = described(PROBES.find(name)).items()
        rows = [(f"`{field}`", f"`{default or 'none'}`", text) for field, (default, text) in settings]
        yield from [f"## mvar probe {name}", "", *table(("setting", "default", "what it is"), rows), ""]


def metrics() -> str:
    """Every metric: its keys, version, and which way is better."""
    from mvar.evaluation.metrics.contract import NEEDS, every_metric
    from mvar.presets import PRESETS

    rows, keys = [], []
    for name, metric in every_metric().items():
        asked = "always" if metric.by_default(PRESETS["digits"]) else "where `evaluation.also` names it"
        rows.append((f"`{name}`", f"{metric.version}", names(metric.needs), asked, about(metric)))
        for key in (*metric.keys, *metric.also):
            better = "lower" if key in metric.lower else "higher" if key in metric.higher else ""
            keys.append((f"`{key}`", f"`{name}`", better))
    needs = [(f"`{name}`", text) for name, text in NEEDS.items()]
    parts = (
        *("# Every metric", "", *METRICS_BEGIN),
        *table(("name", "version", "needs", "measured", "what it is"), rows),
        *("", "## Keys", "", *table(("key in `eval.json`", "of", "better"), keys)),
        *("", "## What they need", "", *table(("needs", "what that is"), needs), ""),
    )
    return "\n".join(parts)


def about(kind: type) -> str:
    """The first line of a class's docstring."""
    return (kind.__doc__ or "").strip().splitlines()[0]


def names(texts: Iterable[str]) -> str:
    """`a`, `b`, `c`."""
    return ", ".join(f"`{text}`" for text in texts)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *cells)]


FIELDS_BEGIN = (
    "Made of the code, as `mvar config fields` prints it. `--set FIELD=VALUE` changes one. Defaults are those of the",
    "preset `digits`; of settings that it does not give, their own. [Configuration](configuration.md) says how fields",
    "are given.",
    "",
)
METRICS_BEGIN = (
    "Made of the code. [Metrics](metrics.md) has definitions, sources and pitfalls. A key with `*` is one a scale.",
    "",
)
MADE: dict[str, Callable[[], str]] = {"cli.md": command_line, "fields.md": fields, "metric-keys.md": metrics}
