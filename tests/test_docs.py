"""The documentation: every command in it is run, at rehearsal size, and nothing is marked without need; the README
stays short.
"""

import contextlib
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
from documented import DRY, PAGES, PARSED, ROOT, RUN, beside, commands, inline, name

import mvar
from mvar.cli import COMMANDS, parse
from mvar.config.described import fields_of
from mvar.errors import OK, USER_ERROR, UserError
from mvar.evaluation.metrics.contract import every_metric
from mvar.presets import PRESETS
from mvar.registries import KINDS, MIXERS, PROBES

LEAST = {"laptop.md": 20, "cluster.md": 6, "configuration.md": 5, "imagenet.md": 2}  # commands, so that none is missed
WITH_COMMANDS = [name(page) for page in PAGES if any(command.how != PARSED for command in commands(page))]


def hook(path: str) -> ModuleType:
    """A file that mkdocs loads."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES_MADE = hook("docs/pages.py")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_line_is_one(page):
    found = [command for command in commands(page) if command.words[0] == "mvar" and command.words[1:]]
    assert len(found) >= LEAST.get(page.name, 0)
    for command in found:
        try:
            parsed = parse(command.words[1:])
        except (UserError, SystemExit) as error:
            pytest.fail(f"{command.line}: {error}")
        assert type(parsed) is COMMANDS[command.words[1]]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_inside_sentences_are_commands(page):
    """What lacks an argument names a command and runs nothing: `mvar export`, `mvar evaluate --checkpoint`."""
    for line in dict.fromkeys(inline(page)):
        words = shlex.split(line.replace("...", ""))[1:]
        assert words[0] in COMMANDS, line
        with contextlib.suppress(SystemExit):
            try:
                parse(words)
            except UserError as error:
                assert re.search(r"not given|Missing value|Expected \d+ values", str(error)), f"{line}: {error}"


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_what_is_made_can_be_made():
    """`make` knows the targets of every page, and benchmarks their options."""
    lines = [words for page in [*PAGES, ROOT / "CONTRIBUTING.md"] for words in beside(page)]
    assert {words[0] for words in lines} == {"make", "python"}
    made = {tuple(words) for words in lines if words[0] == "make"}
    assert ("make", "demo") in made and ("make", "gpu", "OFFICIAL=../VAR", "OFFICIAL_MVAR=../MVAR") in made
    for words in made:
        done = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
    sources = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    for words in lines:
        options = re.findall(r"--([a-z][\w-]*)", " ".join(words))
        assert [
            option for option in options if not re.search(rf"^    {option.replace('-', '_')}: ", sources, re.M)
        ] == []
        assert words[0] == "make" or importlib.util.find_spec(words[2]), words


@pytest.fixture(scope="session")
def rehearsed(tmp_path_factory):
    """What every command did that is not marked as only parsed."""
    script, here = str(ROOT / "tests/rehearse_docs.py"), tmp_path_factory.mktemp("rehearsal")
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    words = [sys.executable, script, str(here), *WITH_COMMANDS]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_command_runs(page, rehearsed):
    wanted = [command for command in commands(ROOT / page) if command.how in (RUN, DRY)]
    done = [tuple(values) for values in rehearsed if values[0] == page]
    assert [command.line for command in wanted] == [line for _, line, *_ in done]
    for command, (_, line, code, said, _) in zip(wanted, done, strict=True):
        assert code == (USER_ERROR if command.mistake else OK), f"{line}:\n{said}"
        assert "Traceback" not in said
        if mistake := command.mistake.removesuffix("...").rstrip(", "):
            assert mistake in said


@pytest.mark.parametrize(
    "phrase",
    [
        "what keys cannot tell",
        "ends in the same bytes",
        "else the table is refused",
        "two spellings of one model are",
        "sentences in them are made",
        "but slow ones and faults",
        "generator that recites",
    ],
)
def test_sentences_that_nobody_read_once_are_gone(phrase):
    assert [name(page) for page in PAGES if phrase in " ".join(page.read_text().split())] == []


def test_marks_are_few():
    """A command that can be run is: what is only parsed needs something that no test has."""
    found = [command for page in PAGES for command in commands(page)]
    counts = {how: sum(command.how == how for command in found) for how in (RUN, DRY, PARSED)}
    assert counts[RUN] > 2 * (counts[DRY] + counts[PARSED]), counts


def test_the_readme_is_short():
    """GitHub's first screen; what is longer is a page of docs/."""
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 12_000
    assert text.index("make demo") < 4_000


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    made = {*PAGES_MADE.MADE, *PAGES_MADE.COPIED}
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", text):
        assert target in made or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_example_stands_whole_on_the_page_of_kinds():
    """In the pages that are built; on GitHub its link does."""
    text = (ROOT / "docs/own-parts.md").read_text()
    shown = PAGES_MADE.on_page_markdown(text)
    for path in (ROOT / "examples").glob("*.*"):
        if path.stem not in ("README", "mixer", "metric"):  # they have pages of their own
            assert path.read_text().rstrip() in shown and f"](../examples/{path.name})" in text, path
    assert "<!-- file" not in shown


def test_pages_are_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in menu] == []


def test_every_mixer_has_its_row():
    page = (ROOT / "docs/mixers.md").read_text()
    assert [name for name in MIXERS.paths if not re.search(rf"^\| `{name}[`:]", page, re.MULTILINE)] == []


# What is made of the code -------------------------------------------------------------------------------------------


def test_the_page_of_fields_has_every_field_and_setting():
    page = PAGES_MADE.fields()
    assert [field.name for field in fields_of(PRESETS["digits"]) if f"| `{field.name}` | " not in page] == []
    assert [name for name in PRESETS if f"\n{name} " not in page] == []
    assert [name for registry in KINDS.values() for name in registry.names() if f"`{name}`" not in page] == []
    for probe in PROBES.names():
        settings = page.partition(f"## mvar probe {probe}\n")[2]
        assert [field for field in PROBES.find(probe).Settings.model_fields if f"| `{field}` | " not in settings] == []


def test_the_page_of_metrics_has_every_key():
    page = PAGES_MADE.metrics()
    for metric_name, metric in every_metric().items():
        assert re.search(rf"^\| `{metric_name}` \| {metric.version} \| ", page, re.MULTILINE)
        for key in (*metric.keys, *metric.also):
            better = "lower" if key in metric.lower else "higher" if key in metric.higher else ""
            assert f"\n| `{key}` | `{metric_name}` | {better} |\n" in page


def test_the_api_has_every_name_that_pages_and_examples_use():
    paths = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    things = [pkgutil.resolve_name(path) for path in paths]
    texts = [
        path.read_text() for folder in ("docs", "examples") for path in (ROOT / folder).glob("*.*") if path.is_file()
    ]
    used = set(re.findall(r"\bmvar\.([A-Za-z]\w*)", "\n".join(texts))) & set(mvar.__all__) | {"PRESETS", "Probe"}
    told = {name for name in used if any(getattr(mvar, name) is thing for thing in things)}
    assert used - told - {path.rpartition(".")[2] for path in paths} == set()


def test_a_mark_is_seen_on_the_page():
    marks = "<!-- dry run: mvar submit -->\n<!-- only parsed: mvar cancel RUN: there is no SLURM -->\n"
    shown = PAGES_MADE.on_page_markdown(f"Text.\n\n{marks}```\nmvar submit x\n```\n\nMore.\n")
    assert "they only plan `mvar submit`, and only parse `mvar cancel RUN` (there is no SLURM)." in shown
    assert "Tests run" not in PAGES_MADE.on_page_markdown("```\nmvar status\n```\n")
