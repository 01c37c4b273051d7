"""The page and the LaTeX tables as Chromium and pdflatex see them, where those are there."""

import json
import re
import shutil
import subprocess
from base64 import b64decode
from html import escape

import pytest
from browser import chromium, look, need

from mvar.analysis.compare import Measured
from mvar.analysis.document import Bullets, Section, Text, document_to_markdown
from mvar.analysis.page import document_to_html
from mvar.analysis.panels import panels
from mvar.analysis.render import Note, Table
from mvar.runs.columns import Column

CHROMIUM = "chromium"
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

MEASURE = """onload = () => {
  const told = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach(one => one.open = true);
    const parts = [...page.querySelectorAll("td, th, img, code")].map(part => part.getBoundingClientRect().right);
    return [page.documentElement.clientWidth, page.documentElement.scrollWidth, parts.length, Math.max(...parts)];
  });
  document.body.textContent = JSON.stringify(told);
}"""

TABLE = Table(
    "t",
    "T",
    (Column("label", "row", is_text=True), Column("fid", "FID", "measured"), Column("paper_fid", "FID", "paper (X)")),
    [
        {"label": "a <b>", "fid": Measured(1.5, 0.1, 2, ("d-s0-aaaa", "d-s1-bbbb")), "paper_fid": 3.0},
        {"label": "c", "fid": Measured(2.5, None, 1, ("d-s0-cccc",))},
        {"label": "d", "paper_fid": 4.0},
    ],
    [["d-s0-aaaa", "d-s1-bbbb"], ["d-s0-cccc"], []],
    [Note(0, "paper_fid", "a contradiction")],
    ["how to read"],
    ["Missing here: d. Command: `mvar run mixers`"],
)


@pytest.fixture
def page(whole):
    return whole[0].with_suffix(".html")


def test_cells_lead_to_their_runs(tmp_path):
    html = document_to_html(
        [Section("First: one", [Text("**bold** <i>"), Bullets(["x `y`"], "List"), TABLE])], tmp_path
    )
    cells = re.findall(r"<td[^>]*>(?:(?!</td>).)*</td>", html.replace("\n", ""))
    assert 'title="from d-s0-aaaa, d-s1-bbbb">1.50 ± 0.10</td>' in cells[1]
    assert '<a href="../runs/d-s0-cccc/">2.50</a>' in cells[5]
    assert "title" not in cells[9] and ">—<" in cells[9]  # nothing measured: nothing to lead to
    assert "3.00<sup>a</sup>" in cells[2] and "<sup>a</sup> a contradiction" in html
    assert (
        "a &lt;b&gt;" in html and "<strong>bold</strong> &lt;i&gt;" in html and "<code>mvar run mixers</code>" in html
    )
    assert 'id="first-one"' in html and 'href="#first-one"' in html


def test_every_panel_tells_its_rows_apart():
    """By the first column, and by a second one where that is needed."""
    wide = [Column(f"m{n}", f"a heading of {n}", "measured") for n in range(9)]
    heads = Column("size", "size", is_text=True), Column("part", "part", is_text=True)
    rows = [{"size": size, "part": part} for size in ("small", "large") for part in ("inside", "between")]
    for taken, needed in ((rows, 2), (rows[::2], 1), (rows[:1] * 2, 1)):
        found = panels(Table("t", "T", (*heads, *wide), taken, [[]] * len(taken)))
        assert len(found) > 1 and all(tuple(panel.columns[:needed]) == heads[:needed] for panel in found)
        assert [c for panel in found for c in panel.columns[needed:]] == [*heads, *wide][needed:]


def test_markdown_says_the_same(tmp_path):
    text = document_to_markdown([Section("First: one", [TABLE])])
    assert (
        "| a &lt;b> | 1.50 ± 0.10 | 3.00<sup>a</sup> | [s0-aaaa](../runs/d-s0-aaaa/) [s1-bbbb](../runs/d-s1-bbbb/) |"
        in text
    )
    assert "| d | — | 4.00 | — |" in text and "Missing here: d. Command: `mvar run mixers`" in text


def test_the_page_needs_nothing_else(page):
    html = page.read_text()
    assert "<script" not in html and "http://" not in html and "https://" not in html
    sources = re.findall(r'(?:<img src|srcset)="([^"]{0,40})', html)
    assert len(sources) > 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    held = re.findall(r'<a download="([^"]+)" href="data:([a-z/-]+);base64,', html)
    assert {kind for _, kind in held} == {"text/csv", "application/x-tex", "application/pdf"} and "runs.csv" in dict(
        held
    )
    for link in re.findall(r'href="((?!data:)[^"#]+)"', html):
        assert not link.startswith("/") and (page.parent / link).exists(), link
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert f'id="{anchor}"' in html, anchor


def test_a_browser_shows_every_table_and_picture(page, tmp_path):
    need(CHROMIUM)
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    source = page.read_text()
    assert dom.count("<table") == source.count("<table") > 8 and dom.count("<img") == source.count("<img") > 5
    for heading in ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 5"):
        assert re.search(rf"<h2>{heading}", dom), heading
    # a browser repairs what is malformed by moving it: the same tags in the same order mean that nothing was
    tags = re.compile(r"<(/?(?:table|thead|tbody|tr|td|th|section|figure|ul|li|nav))\b")
    assert tags.findall(dom) == tags.findall(source)


@pytest.mark.slow
def test_no_table_is_cut_at_any_width(page, tmp_path):
    """Windows of 1,400, 800 and 400 px and a sheet of A4: frames of these widths hold the page, and are measured."""
    widths = [1400, 800, 718, 400]
    held = escape(page.read_text())
    frames = "".join(f'<iframe style="width:{w}px;height:900px;border:0" srcdoc="{held}"></iframe>' for w in widths)
    (tmp_path / "frames.html").write_text(f"<!DOCTYPE html><body>{frames}<script>{MEASURE}</script></body>")
    need(CHROMIUM)
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'user'}", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"(\[\[.*\]\])", done.stdout)
    assert found, done.stdout[-500:]
    for width, (wide, scrolled, number, right) in zip(widths, json.loads(found[1]), strict=True):
        assert number > 300 and width - 20 <= wide <= width, (width, wide)
        assert scrolled <= wide and right <= wide, (width, scrolled, right)


FIRST_SCREEN = """
const seen = (what) => [...document.querySelectorAll(what)].filter((part) => part.checkVisibility());
const bottom = (what) => seen(what)[0].getBoundingClientRect().bottom;
return {table: bottom("#table-overview table"), figure: bottom("main figure img"), date: bottom("h1 ~ p"),
  contents: seen("a[href^='#']").length, sections: document.querySelectorAll("section").length};
"""


def test_the_first_screen_has_table_and_figure(page, tmp_path):
    """On a laptop's, a tablet's and a telephone's; below 60rem the list of contents is folded under the title."""
    with chromium(tmp_path) as driver:
        for width, height in ((1280, 800), (800, 1000), (400, 860)):
            look(driver, width, height=height)
            driver.get(page.as_uri())
            found = driver.execute_script(FIRST_SCREEN)
            assert 0 < found["date"] < found["table"] < found["figure"] <= height, (width, found)
            is_narrow = width < 960
            assert found["contents"] == (0 if is_narrow else found["sections"]) and found["sections"] > 5
            if is_narrow:
                driver.execute_script("document.querySelector('.contents summary').click()")
                assert driver.execute_script(FIRST_SCREEN)["contents"] == found["sections"]


PRINTED = """
const page = document.documentElement, wide = page.clientWidth;
const all = what => [...document.querySelectorAll(what)].filter(part => part.offsetParent);
const parts = all("td, th, img, code, pre"), seen = name => getComputedStyle(document.querySelector(name));
const told = found => found.map(part => part.outerHTML.slice(0, 200));
const hides = part => getComputedStyle(part).overflow !== "visible" &&
  (part.scrollWidth > part.clientWidth + 1 || part.scrollHeight > part.clientHeight + 1);
return {
  wide, scrolled: page.scrollWidth, parts: parts.length,
  cut: told(parts.filter(part => part.getBoundingClientRect().right > wide + 0.5)),
  hidden: told(all("main *").filter(hides)),
  dark: [...document.images].filter(image => image.currentSrc !== image.src).length,
  nav: seen("nav").display, head: seen("thead").position, ground: seen("body").backgroundColor,
};
"""


@pytest.mark.slow
def test_nothing_is_cut_in_print_and_ink_is_dark(page, tmp_path):
    """An A4 sheet within the margins of a print dialogue, also of a reader who prefers dark pages."""
    with chromium(tmp_path) as driver:
        look(driver, 718)
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
        driver.get(page.as_uri())
        found = driver.execute_script(PRINTED)
        sheet = {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}  # inches
        pdf = b64decode(driver.execute_cdp_cmd("Page.printToPDF", sheet)["data"])
    assert found["parts"] > 300 and found["scrolled"] <= found["wide"] == 718
    assert not found["cut"] and not found["hidden"], (found["cut"][:3], found["hidden"][:3])
    assert (found["nav"], found["head"]) == (
        "none",
        "static",
    )  # heads again on each sheet, over no row
    assert found["ground"] == "rgb(255, 255, 255)" and not found["dark"]
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")
def test_every_latex_table_compiles(page, tmp_path):
    for path in (page.parent / "tables").glob("*.tex"):
        shutil.copy(path, tmp_path)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    pages = int(re.search(r"\((\d+) pages?", done.stdout)[1])
    assert pages >= len(list(tmp_path.glob("*.tex"))) - 1  # one a table
    assert "Overfull \\hbox" not in done.stdout
