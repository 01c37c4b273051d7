"""A report of strangers' results: labels, names, reasons and settings that would be obeyed if nobody escaped them."""

import csv
import json
import re
from html import unescape
from html.parser import HTMLParser
from io import StringIO

import pytest
from markdown_it import MarkdownIt

from mvar import cli, escaping
from mvar.analysis import inline
from mvar.analysis.document import Bullets, Section, Text, document_to_markdown
from mvar.analysis.frame import frame
from mvar.analysis.page import document_to_html
from mvar.analysis.render import Note, Table, csv_text, to_csv, to_latex, to_markdown
from mvar.analysis.report import write_report
from mvar.runs.columns import Column

BAD = {
    "=cmd|' /C calc'!A0": "a formula",
    "x\n\\input{/etc/passwd}\n\\immediate\\write18{ls}": "commands behind a comment",
    "![p](http://evil.example/p.png) <img src=http://evil.example> <script>alert(1)</script> | b": "fetched",
    "_$5 $6_ \x1b]0;t\x07 \x1b[31m[red] **b** 中文 \udcff": "signs",
}
TEXT = " ".join(BAD)


LATEX = {rf"\{name}" for name in ("begin", "end", "centering", "caption", "label", "resizebox", "toprule", "midrule")}
LATEX |= {rf"\{name}" for name in ("bottomrule", "multicolumn", "footnotesize", "par", "textemdash", "documentclass")}
LATEX |= {r"\usepackage", r"\input", r"\clearpage"}


@pytest.fixture(scope="module")
def strange(fabricated, tmp_path_factory):
    """A results directory of which every text that a report shows is strange; its report."""
    results = fabricated(tmp_path_factory.mktemp("strange") / "results")
    _, configs = results.sweep("mixers", seeds=(0, 1))
    results.sweep("layers")
    path = results.store.manifest_path("mixers-digits-steps")
    manifest = json.loads(path.read_text())
    for cell, label in zip(manifest["cells"], BAD, strict=True):
        cell["label"] = label
    manifest |= {
        "artefact": f"Table 6 {TEXT}",
        "command": f"mvar run `mixers` {TEXT}",
        "overrides": {"data.root": TEXT},
    }
    path.write_text(json.dumps(manifest))
    path.rename(path.with_name('mi xers$%{}"<b>\udcff.json'))
    old = results.store.run(configs[2].run_id).path
    new = old.rename(old.with_name("run |[red]<b>)](\udcff$%"))
    for path in results.root.glob("sweeps/*.json"):
        path.write_text(path.read_text().replace(json.dumps(configs[2].run_id), json.dumps(new.name)))
    results.store.run(configs[4].run_id).write_status("failed", "train", reason=f"boom\n# {TEXT}")
    for name, change in (("env.json", {"cpu": TEXT}), ("eval.json", None)):
        path = results.store.run(configs[0].run_id).path / name
        values = json.loads(path.read_text())
        if change is None:
            for record in values["evaluations"].values():
                record["metrics"] |= {TEXT: 1, "eval/count": 2**53 + 1}
        path.write_text(json.dumps(values | (change or {})))
    assert cli.main(["report", "--results", str(results.root)]) == 0
    return results.root / "report"


@pytest.mark.slow
def test_nothing_of_the_markdown_is_live(strange):
    text = (strange / "report.md").read_text()
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    tags = set(re.findall(r"<(\w+)", html))
    assert all(
        re.fullmatch("h[1-3]|p|ul|li|strong|em|code|a|img|table|thead|tbody|t[rhd]|sup|br|details|summary", tag)
        for tag in tags
    )
    targets = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(targets) > 30 and not [target for target in targets if re.match(r"[a-z]+:|//", target)]
    text = re.sub(r"(`+).*?\1", "", re.sub(r"\\`", "", text))  # code spans show everything
    assert not re.search(r"(?<!\\)!\[[^\]]*\]\((?!figures/)", text) and "<img" not in text and "<script" not in text
    assert "\x1b" not in text and "\x07" not in text


class Page(HTMLParser):
    """Tags and where they lead."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.targets, self.handlers = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.targets += [value for name, value in attributes if name in ("src", "href")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


@pytest.mark.slow
def test_nothing_of_the_page_is_live(strange):
    text = (strange / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and not page.handlers
    assert not [
        target
        for target in page.targets
        if re.match(r"(?!data:(?:image/png|text/csv|application/(?:pdf|x-tex));base64,)[a-z]+:|//", target)
    ]
    assert "\x1b" not in text and "\x07" not in text
    assert "&lt;script&gt;" in text  # shown


@pytest.mark.slow
def test_links_lead_to_files_whatever_their_names(strange):
    from urllib.parse import unquote

    page = Page((strange / "report.html").read_text())
    for target in page.targets:
        if not target.startswith(("#", "data:")):
            assert (strange / unquote(target, errors="surrogateescape")).exists(), target
    assert any("run%20" in target for target in page.targets)


@pytest.mark.slow
def test_nothing_of_the_latex_is_live(strange):
    paths = list((strange / "tables").glob("*.tex"))
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", path.name) for path in paths)
    names = {path.name for path in paths}
    for path in paths:
        text = path.read_text()
        assert text.isascii() and "\\write" not in text
        inputs = re.findall(r"\\input\{(.*?)\}", text)
        assert set(inputs) <= names and bool(inputs) == (path.name == "tables.tex")
        for line in text.splitlines():
            command = re.match(r"\\[a-z]+", line)
            assert not command or command[0] in LATEX, line


@pytest.mark.slow
def test_nothing_of_the_csv_is_computed_and_every_text_comes_back(strange):
    for path in (strange / "tables").glob("*.csv"):
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        for cell in cells:
            assert not re.match(r"[=+@\t\r]", cell) and not re.match(r"-(?![0-9.]+(e-?[0-9]+)?$)", cell), cell
    (table,) = (path for path in (strange / "tables").glob("mi_xers*.csv") if "differences" not in path.name)
    with table.open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert labels == [escaping.spreadsheet(label) for label in BAD]


@pytest.mark.slow
def test_counts_of_runs_stay_exact_beside_runs_that_lack_them(strange):
    with (strange / "tables" / "runs.csv").open(newline="") as file:
        counts = [row["eval/count"] for row in csv.DictReader(file)]
    assert sorted(set(counts)) == ["", str(2**53 + 1)]


@pytest.mark.slow
def test_a_problem_is_one_line_whatever_its_text(strange, capsys):
    listed = (strange / "report.md").read_text().split("## Problems\n\n")[1].rstrip("\n").split("\n")
    assert all(line.startswith("- ") for line in listed)
    assert sum("boom # =cmd" in line for line in listed) == 1
    assert cli.main(["report", "--results", str(strange.parent)]) == 0
    said = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert len(said) == len(listed) + 1 and all(line.startswith("mvar: warning: ") for line in said)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(said))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_status_shows_it_on_any_terminal(strange, encoding):
    import os
    import subprocess
    import sys

    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "mvar.cli", "status", "--results", str(strange.parent)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    shown = done.stdout.decode(encoding)
    assert done.returncode == 0 and done.stderr == b"" and "run |[red]<b>)](" in shown and "[red] **b**" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


@pytest.mark.slow
def test_figures_of_it_are_drawn(strange):
    problems = (strange / "report.md").read_text().split("## Problems")[1]
    assert "figure" not in problems
    assert len(list((strange / "figures").glob("loss-*.pdf"))) == 1


@pytest.mark.slow
def test_tables_of_commands_show_it(strange, capsys):
    from mvar.commands.attention import show
    from mvar.commands.evaluation_table import print_evaluation
    from mvar.probes.attention_mass import AttentionStats
    from mvar.runs.store import Store

    store = Store(strange.parent)
    run = next(run for run in store.runs() if (run.path / "attention.json").exists() and "-s0-" in run.name)
    show(AttentionStats.from_json(json.loads((run.path / "attention.json").read_text())), TEXT)
    shown = capsys.readouterr().out
    assert (
        "".join(escaping.one_line(TEXT).split()) in "".join(shown.split())
        and "\x1b]" not in shown
        and "\x07" not in shown
    )
    print_evaluation(run, run.config())
    shown = capsys.readouterr().out
    assert "=cmd|' /C calc'!A0" in shown and "\x1b]" not in shown and "\x07" not in shown


@pytest.mark.parametrize("text", BAD)
def test_pictures_show_names_of_classes_as_they_are(text, tmp_path, recwarn):
    import numpy as np
    import torch
    from matplotlib.text import Text as Written

    from mvar.analysis import maps, pictures, style
    from mvar.scales import ScaleSchedule

    schedule, image = ScaleSchedule((1, 2)), np.zeros((8, 8, 3), np.uint8)
    figures = (
        pictures.growth_figure(np.zeros((1, 2, 8, 8, 3), np.uint8), schedule.sides, [text], text),
        pictures.query_figure(torch.full((5,), 0.2), schedule, 2, image, text),
        maps.map_figure(torch.full((5, 5), 0.2), schedule, text),
    )
    for figure in figures:
        drawn = [words._preprocess_math(words.get_text())[0].lstrip("\u200b") for words in figure.findobj(Written)]
        title = escaping.one_line(text)[: escaping.MAX_IN_FIGURE - 1]
        assert any(title in words for words in drawn) and not any(r"\$" in words for words in drawn)
        style.save(figure, tmp_path, "f")
    assert [str(warning.message) for warning in recwarn] == []


# Its parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "markdown", "html"),
    [
        ("**Not compared.** a", "**Not compared.** a", "<strong>Not compared.</strong> a"),
        ("see `a|b *` and [x](#x)", "see `a|b *` and [x](#x)", 'see <code>a|b *</code> and <a href="#x">x</a>'),
        ("4*a 5*b __c__", r"4\*a 5\*b \_\_c\_\_", "4*a 5*b __c__"),
        ("![x](http://e)", r"!\[x\]\(http\://e)", "![x](http://e)"),
        ("!`", r"!\`", "!`"),
        ("![x](#x)", r"\![x](#x)", '!<a href="#x">x</a>'),
        ("[x](javascript:a)", r"\[x\]\(javascript:a)", "[x](javascript:a)"),
        ("[x](../runs/a/)", "[x](../runs/a/)", '<a href="../runs/a/">x</a>'),
        ("<b> & &lt;", r"&lt;b> & &lt;", "&lt;b&gt; &amp; &lt;"),
        ("a\n# b", "a # b", "a # b"),
        ("- a", r"\- a", "- a"),
    ],
)
def test_a_sentence_has_three_kinds_of_markup(sentence, markdown, html):
    assert inline.to_markdown(sentence) == markdown and inline.to_html(sentence) == html
    section = [Section("T", [Text(sentence), Bullets([sentence])])]
    assert document_to_markdown(section).splitlines()[2::2] == [markdown, f"- {markdown}"]


@pytest.mark.parametrize("text", BAD)
def test_every_part_of_a_table_is_shown_as_it_is(text, tmp_path):
    columns = (Column("label", "row", is_text=True), Column("command", "command", is_text=True, is_code=True))
    rows, sentence = [{"label": text, "command": text}], escaping.markdown(text)
    notes, reading, missing = [Note(0, "label", sentence)], [sentence], [inline.prose(text)]
    table = Table(text, text, columns, rows, [[text]], notes, reading, missing, text)
    seen = escaping.one_line(text)

    render = MarkdownIt("commonmark", {"html": True}).enable("table").render
    pages = (render(to_markdown(table, escaping.link)), document_to_html([Section("T", [table])], tmp_path))
    for number, page in enumerate(pages):
        cells = [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page, re.DOTALL)]
        assert cells[:2] == [f"{seen}<sup>a</sup>", f"<code>{seen}</code>"], number
        words = unescape(re.sub(r"<[^>]*>", "", page.rpartition("</table>")[2]))
        assert words.count(seen) >= 2 + number, number  # the note and what is missing; on the page how to read it
    latex = to_latex(table)
    assert latex.count(escaping.latex(text)) >= 3 and latex.splitlines()[1].startswith("% ")
    with StringIO(to_csv(table), newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [escaping.spreadsheet(text)]


def test_whole_numbers_stay_whole_beside_a_gap():
    big = 2**53 + 1
    rows = [{"a": big, "b": 1.5, "c": 10**30, "d": big, "e": 1, "f": True}, {"b": 2.0, "d": 0.5, "e": 2}, {"e": 3}]
    table = frame(rows)
    text = csv_text(list(table.columns), table.astype(object).itertuples(index=False, name=None))
    assert text.splitlines() == [
        "a,b,c,d,e,f",
        f"{big},1.5,{10**30},{big},1,True",
        ",2.0,,0.5,2,",
        ",,,,3,",
    ]
    assert table["a"].dropna().unique()[0].item() == big and table["e"].dtype == "int64"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_cell_of_a_table_may_be_larger_than_any_machine_word(results):
    _, configs = results.sweep("mixers")
    for number, config in enumerate(configs):
        record = results.evaluation(config)
        record["cost"]["train_flops"] = 10**21 + number
        results.store.run(config.run_id).add_evaluation(config.evaluation_id, record)
    path = write_report(results.root).parent / "tables" / "mixers-digits-steps.csv"
    with path.open(newline="") as file:
        assert [row["train_flops"] for row in csv.DictReader(file)] == [str(10**21 + number) for number in range(4)]
