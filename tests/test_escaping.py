"""Texts of strangers in every output: shown, and never obeyed."""

import csv
import io
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mvar import errors, escaping

ROOT = Path(__file__).parents[1]
HOSTILE = {
    "picture": "![p](http://evil.example/p.png)",
    "reference picture": "![p][r]",
    "html": "<img src=x onerror=alert(1)><script>alert(2)</script>",
    "script link": "[click](javascript:alert(1)) <javascript:alert(1)>",
    "address": "http://evil.example www.evil.example",
    "autolink": "<http://evil.example>",
    "emphasis": "4*global 4*mamba __init__ **b** _e_ ~~s~~",
    "code": "`rm` ``x`",
    "backslashes": r"\ \\ \] \`",
    "entity": "&lt;b&gt; &amp; &#60;",
    "table": "a | b || c",
    "heading": "# not a heading",
    "list": "- no item",
    "number": "1. no item",
    "quotation": "> no quotation",
    "task": "[x] no task",
    "definition": "[r]: http://evil.example",
    "footnote": "[^1]",
    "lines": "one\n# two\r\n\n- three\u2028four\x85five",
    "latex input": "x\n\\input{/etc/passwd}",
    "latex shell": "x\n\\immediate\\write18{touch /tmp/x}",
    "latex signs": r"$5 and $6 100% a_b #1 {x} ~ ^ & \\[2pt] * --",
    "latex wide": "＼input｛x｝ ％ ＄ ﹨ ﹪",
    "markup": "[red]x[/red] [/] :smile: [link=http://e]y[/link]",
    "ansi": "\x1b[31mred\x1b[0m \x9b31m \x1b]0;title\x07 \x1b]8;;http://evil.example\x1b\\",
    "overprint": "safe\rEVIL \x08\x08\x7f",
    "reordered": "abc\u202egnp.exe\u2066",
    "formula": "=cmd|' /C calc'!A0",
    "formulas": "+1+cmd|x",
    "minus formula": "-2+3+cmd|x",
    "at formula": "@SUM(A1)",
    "tab formula": "\t=1+1",
    "wide formula": "＝1+1",
    "dollars": r"$\frac$ $5 $6",
    "underscore": "_hidden",
    "scripts": "中文 עברית العربية ไทย 🦊",
    "not utf-8": "caf\udce9",
    "null": "a\x00b",
    "empty": "",
}
ANYTHING = st.text(st.characters(), max_size=40)  # half surrogates too
everywhere = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def shown(text):
    """What a reader is to see of a text that is put on one line."""
    return escaping.one_line(text)


# Terminals ----------------------------------------------------------------------------------------------------------


def is_harmless(line):
    return not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", line)


@everywhere
def test_an_error_is_one_harmless_line(text, capsys):
    assert errors.complain(f"class: {text!s} is unknown", 2) == 2
    errors.warn(text)
    errors.say(text)
    said = capsys.readouterr()
    error, warning = said.err.removesuffix("\n").split("\n")
    assert error.startswith("mvar: error: class: ") and warning.startswith("mvar: warning:")
    (line,) = said.out.removesuffix("\n").split("\n")
    assert is_harmless(error) and is_harmless(warning) and is_harmless(line)
    (error + warning + line).encode()  # no half of a surrogate pair is left


@settings(max_examples=200)
@given(ANYTHING)
def test_whatever_the_text_it_is_one_line(text):
    line = escaping.one_line(text)
    assert is_harmless(line) and line.splitlines() == [line] * bool(line)
    line.encode()


@pytest.mark.parametrize("text", ["plain", "a b", "±0.5 × 3", "4*global", "größer", "中文", "[red]x[/]"])
def test_what_is_harmless_stays(text):
    assert escaping.one_line(text) == escaping.printable(text) == text


def test_a_name_of_other_bytes_is_shown_with_a_replacement():
    assert escaping.one_line(os.fsdecode(b"caf\xe9")) == "caf�"


@everywhere
def test_rich_takes_no_markup_from_it(text):
    from rich.console import Console
    from rich.table import Table

    stream = io.StringIO()
    table = Table("x", title=escaping.rich_text(text))
    table.add_row(escaping.rich_text(text))
    console = Console(file=stream, width=200, force_terminal=True, color_system="truecolor", legacy_windows=False)
    console.print(table)
    written = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())  # rich's own colours
    assert "\x1b" not in written and "\x9b" not in written and "\r" not in written
    assert written.count(shown(text)) == 2 or not shown(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [("5 ± 1", "5 +/- 1"), ("8 × 8", "8 x 8"), ("│─┼╭", "|-++"), ("café", "cafe"), ("中", "?"), ("FID ↓ —", "FID v -")],
)
def test_what_ascii_lacks_has_a_plain_form(text, plain):
    assert escaping.ascii_only(text) == plain
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    escaping.degrade(stream)
    stream.write(text)
    stream.flush()
    assert stream.buffer.getvalue().decode() == plain


@settings(max_examples=200)
@given(ANYTHING)
def test_a_stream_that_degrades_never_raises(text):
    for encoding in ("ascii", "latin-1", "utf-8", "cp1252"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        escaping.degrade(stream)
        stream.write(text)
        stream.flush()
    escaping.degrade(None)  # a process without streams


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["inspect", "caf\udce9 ± \x1b[31m"], ["x ± 中"]])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_commands_on_a_terminal_of_another_encoding(arguments, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "mvar.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    assert b"Traceback" not in done.stderr and b"UnicodeEncodeError" not in done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert b"\x1b" not in done.stdout + done.stderr and b"-----" not in done.stderr
    (done.stdout + done.stderr).decode(encoding)


# Markdown -----------------------------------------------------------------------------------------------------------

RENDER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def rendered(source):
    """Tags and text that a reader of Markdown makes of a source, raw HTML allowed as in most."""
    import html

    made = RENDER.render(source)
    return re.findall(r"<[^>]*>", made), html.unescape(re.sub(r"<[^>]*>", "", made)).strip()


def visible(text):
    return re.sub("\ufffd", "�", shown(text))


@everywhere
def test_markdown_is_text_alone(text):
    source = escaping.markdown(text)
    tags, words = rendered(f"{source}\n\n{escaping.markdown(HOSTILE['definition'])}\n")
    assert tags == ["<p>", "</p>"] * (1 + bool(shown(text)))
    assert words.splitlines() == [line for line in (visible(text), HOSTILE["definition"]) if line]
    assert "<script" not in source and "<img" not in source and "![" not in source and "](" not in source
    assert not re.search(r"https?://|www\.", source)


@everywhere
def test_a_cell_of_a_markdown_table_is_text_alone(text):
    tags, words = rendered(f"| a | b |\n| :-- | --: |\n| {escaping.markdown(text)} | end |\n")
    assert tags.count('<td style="text-align:left">') == 1 and len([t for t in tags if t.startswith("<td")]) == 2
    assert not {tag for tag in tags if re.match(r"<(a|img|script|code|em|strong|s|br)\b", tag)}
    assert words.split("\n")[-2:] == [visible(text), "end"] or not shown(text)


@everywhere
def test_a_code_span_is_code(text):
    tags, words = rendered(f"run {escaping.code(text)} now")
    assert [tag for tag in tags if tag not in ("<p>", "</p>")] == ["<code>", "</code>"]
    assert words.split() == ["run", *visible(text).split(), "now"]


@settings(max_examples=200)
@given(ANYTHING.filter(lambda text: "\ufffd" not in text))
def test_markdown_of_anything_is_shown_as_it_is(text):
    tags, words = rendered(f"x {escaping.markdown(text)} x")
    assert tags == ["<p>", "</p>"] and words.split() == ["x", *visible(text).split(), "x"]


# LaTeX --------------------------------------------------------------------------------------------------------------

SAFE = r"\\textbackslash\{\}|\\textascii(?:tilde|circum)\{\}|\\text(?:bar|emdash|endash)\{\}|\\`\{\}|\\[&%$#_{}]"
SAFE += r"|\{[][*]\}|-\{\}(?=-)|\$(?:[-<>]|\^2|\\(?:pm|times|downarrow|uparrow|Delta))\$"


def active(source):
    """What is left of LaTeX when what is known to print and no more is taken away."""
    return re.sub(r"[A-Za-z0-9 .,:;!?()/+=@'-]", "", re.sub(SAFE, "", source))


@everywhere
def test_latex_holds_no_command(text):
    assert active(escaping.latex(text)) == ""


@settings(max_examples=200)
@given(ANYTHING)
def test_latex_of_anything_holds_no_active_character(text):
    source = escaping.latex(text)
    assert active(source) == "" and source.isascii() and "--" not in source and "\n" not in source


@everywhere
def test_a_latex_comment_is_one_line_without_a_command(text):
    comment = escaping.latex_comment(text)
    assert comment.splitlines() == [comment] * bool(comment) and comment.isascii()
    assert "\\" not in comment.replace(r"\textbackslash{}", "")


def test_latex_prints_what_it_can():
    assert escaping.latex("R&D: 50 % ± 2 × x_1 é") == r"R\&D: 50 \% $\pm$ 2 $\times$ x\_1 e"


# CSV ----------------------------------------------------------------------------------------------------------------


@everywhere
def test_a_cell_of_a_spreadsheet_is_no_formula(text):
    cell = escaping.spreadsheet(text)
    assert not re.match(r"[=+\-@\t\r\n＝＋－＠]", cell) and cell.lstrip("'") == text.replace("\udce9", "�").lstrip("'")


@pytest.mark.parametrize("text", ["-0.5", "+3", "-1e-05", "450M", "x-1", "a=b", "1@2", ">32", "—"])
def test_numbers_and_other_texts_stay_as_they_are(text):
    assert escaping.spreadsheet(text) == text


# Figures, files, links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for text in HOSTILE.values() if text])
def test_a_figure_shows_a_text_as_it_is(text):
    from mvar.analysis.style import page

    with page(1.0) as (_, axes):
        ax = axes[0, 0]
        ax.plot([0, 1], label=escaping.figure(text))
        ax.set(title=escaping.figure(text), xlabel=escaping.figure(text))
        ax.set_xticks([0], [escaping.figure(text)])
        for written in (ax.xaxis.label, ax._left_title, ax.get_xticklabels()[0], ax.legend().get_texts()[0]):
            drawn, is_math = written._preprocess_math(written.get_text())
            assert not is_math and drawn.lstrip("\u200b") == shown(text)


@everywhere
def test_a_figure_is_written_whatever_is_on_it(text, tmp_path, recwarn):
    from mvar.analysis.style import canvas

    with canvas(tmp_path, "f", 2.0) as (_, axes):
        axes[0, 0].plot([0, 1], label=escaping.figure(text))
        axes[0, 0].set(title=escaping.figure(text))
        axes[0, 0].legend() if shown(text) else None
    assert (tmp_path / "f.png").stat().st_size > 1000 and (tmp_path / "f.pdf").stat().st_size > 1000
    assert [str(warning.message) for warning in recwarn] == []


def test_a_long_text_in_a_figure_is_cut():
    assert escaping.figure("x" * 1000) == "x" * (escaping.MAX_IN_FIGURE - 1) + "…"


@settings(max_examples=200)
@given(ANYTHING, ANYTHING)
def test_names_of_files_are_plain_and_apart(first, second):
    names = [escaping.file_name(name) for name in (first, second)]
    assert all(re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*", name) and len(name) < 220 for name in names)
    assert names[0] != names[1] or first == second


def test_a_plain_name_stays():
    name = "mixers-digits-steps-1a2b3c4d"
    assert escaping.file_name(name) == name and escaping.link("d8-4xintra+mamba-s0") == "d8-4xintra+mamba-s0"


@everywhere
def test_a_link_leads_to_the_very_file(text):
    from urllib.parse import unquote

    target = escaping.link(text)
    assert re.fullmatch(r"[A-Za-z0-9_.~/+%-]*", target) and unquote(target, errors="surrogateescape") == text


def test_every_category_of_characters_was_tried():
    tried = {unicodedata.category(character) for text in HOSTILE.values() for character in text}
    assert {"Cc", "Cf", "Cs", "Zl", "So", "Lo", "Sm", "Sc"} <= tried


def test_csv_gives_every_label_back():
    from mvar.analysis.render import Table, to_csv
    from mvar.runs.columns import Column

    rows = [{"label": text, "n": number} for number, text in enumerate(HOSTILE.values())]
    text = to_csv(Table("t", "t", [Column("label", "l", is_text=True), Column("n", "n")], rows))
    found = list(csv.reader(io.StringIO(text, newline="")))
    assert found == [["label", "n"], *([escaping.spreadsheet(row["label"]), str(row["n"])] for row in rows)]
