"""What pages say they have seen: every number of a table or sentence is one of the report's tables in `docs/seen`."""

import csv
import json
import re
import runpy
from pathlib import Path

import pytest

from benchmarks import official

DOCS = Path(__file__).parents[1] / "docs"
DECIMAL = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?![\w.]*\d)")
VERDICT = re.compile(r"[a-z][a-z ]* \(p (=|below) [\d.]+\)")
PROBES = ("prefix", "reach", "state", "corruption")
CUTS = ("", "-scales", "-kinds", "-cuts")
SECTIONS = {  # page and heading of the section -> the tables that it rests on
    ("data.md", "Table 6 on Fashion-MNIST"): ["mixers-fashion", "mixers-fashion-differences"],
    ("knockout.md", "Seen on the demo"): [f"table1b{part}-digits" for part in (*CUTS, "-fid")],
    ("knockout.md", "Seen on Fashion-MNIST"): [f"table1b{part}-fashion" for part in CUTS],
    ("mixers.md", "Between scales"): [
        "inter_scale-digits-own",
        "inter_scale-lengths-digits",
        "inter_scale-latency",
        "inter_scale-latency-models",
    ],
    ("mixers.md", "Between scales, at one size"): ["inter_scale-digits-own-size"],
    ("mixers.md", "Between scales, at equal FLOPs"): ["inter_scale-digits-budget-own"],
    ("mixers.md", "Between scales, on Fashion-MNIST"): [
        "inter_scale-fashion-own",
        "table1b-fashion",
        "table1b-cuts-images-300-fashion",
    ],
    ("mixers.md", "Which layers"): ["placement-digits", "placement-digits-differences"],
    ("probes.md", "Seen on the demo"): [f"probe-{name}{among}-digits" for name in PROBES for among in ("", "-models")],
    ("probes.md", "Seen on Fashion-MNIST"): [
        "probe-prefix-fashion",
        "probe-prefix-models-fashion",
        "probe-reach-fashion",
        "probe-reach-models-fashion",
        "probe-reach-images-256-fashion",
        "probe-state-fashion",
        "probe-state-models-fashion",
        "probe-corruption-fashion",
        "probe-corruption-models-fashion",
    ],
}


def section(page, heading):
    """The text under a heading, without blocks of code."""
    text = (DOCS / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert text, f"{page} has no section {heading!r}"
    return re.sub("```.*?```", "", text, flags=re.DOTALL)


def stored(names):
    """Rows of stored tables: texts, and numbers, those in verdicts too; and what the report says below them."""
    rows = []
    for name in names:
        with (DOCS / "seen" / f"{name}.csv").open() as file:
            for row in csv.DictReader(file):
                cells = [value for key, value in row.items() if key != "run_ids" and value]
                numbers = [float(n) for cell in cells for n in re.findall(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?", cell)]
                rows.append(([cell for cell in cells if not re.fullmatch(r"[-+\d.e]+", cell)], numbers))
        told = (DOCS / "seen" / f"{name}.txt").read_text()
        rows.append(([], [float(number) for number in DECIMAL.findall(told)]))
    return rows


def is_one_of(text, numbers):
    """Whether a decimal is one of the numbers, or 100 times one, rounded to as many places."""
    half = 0.500001 * 10.0 ** -len(text.partition(".")[2])
    return any(abs(abs(factor * number) - abs(float(text))) <= half for number in numbers for factor in (1, 100))


def rows_of(line, rows):
    """Stored rows of a line: all of a sentence; of a row of a table those that name what it names."""
    names = re.findall("`([^`]+)`", line) if line.startswith("|") else []
    return [
        (texts, numbers)
        for texts, numbers in rows
        if all(any(t == name or t.startswith(f"{name},") for t in texts) for name in names)
    ]


def wrong_numbers(text, rows):
    """Decimals of a section that no stored row of their line has."""
    found = []
    for line in text.splitlines():
        numbers = [number for _, part in rows_of(line, rows) for number in part]
        found += [text for text in DECIMAL.findall(line) if not is_one_of(text, numbers)]
    return found


def wrong_verdicts(text, rows):
    """Verdicts in cells of a section's tables that no stored row of their line has, word for word."""
    found = []
    for line in text.splitlines():
        told = {text for texts, _ in rows_of(line, rows) for text in texts}
        found += [cell for cell in map(str.strip, line.split("|")[1:]) if VERDICT.fullmatch(cell) and cell not in told]
    return found


@pytest.mark.parametrize(("page", "heading"), SECTIONS)
def test_numbers_and_verdicts_of_a_page_are_those_of_stored_tables(page, heading):
    text, rows = section(page, heading), stored(SECTIONS[page, heading])
    assert wrong_numbers(text, rows) == [] and wrong_verdicts(text, rows) == []


def test_another_number_or_anothers_is_found():
    rows = [(["global, digits", "own", "worse (p = 0.049)"], [0.4288, 0.69, 0.049]), (["intra", "own"], [0.1])]
    line = "| `global` | `own` | 0.429, 69.0 % | worse (p = 0.049) |"
    assert wrong_numbers(f"{line}\nIt is 0.43.", rows) == [] == wrong_verdicts(line, rows)
    assert wrong_numbers("| `global` | 0.428 | 69.1 % |", rows) == ["0.428", "69.1"]
    assert wrong_numbers("| `intra` | 0.429 |", rows) == ["0.429"] and wrong_numbers("It is 0.44.", rows) == ["0.44"]
    for other in (line.replace("worse", "better"), line.replace("0.049", "0.69"), line.replace("global", "intra")):
        assert len(wrong_verdicts(other, rows)) == 1


def test_ratios_of_kernels_are_those_of_the_stored_benchmark():
    found = json.loads((DOCS.parent / "benchmarks" / "results" / "mixers.json").read_text())["kernels"]
    rows = {}
    for row in found:
        numbers = f"{row['ratio']:.1f}, {row['rate_over_gemm']:.2f}"
        rows.setdefault((row["mixer"], row["width"], row["length"]), []).append(numbers)
    text = section("performance.md", "Mixers")
    for (mixer, width, length), cells in rows.items():
        assert f"| `{mixer}` | {width} | {length:,} | {' | '.join(cells)} |" in text


def test_figures_beside_the_official_code_are_the_stored_ones(tmp_path):
    """With the share of products where an aim is missed; where nothing is stored the page says so."""
    pages = runpy.run_path(str(DOCS / "pages.py"))
    page, path = (DOCS / "performance.md").read_text(), tmp_path / "official.json"
    table = pages["beside_the_official_code"]
    assert page.count(pages["OFFICIAL"]) == 1 and "has not been run" in table(path)
    sizes = {"depth": 8, "width": 512, "resolution": "256", "batch": 4, "repeats": 5}
    rows = [
        {"model": "VAR", "work": "sampling", "official_s": 3.0, "ours_s": 2.0, "ratio": 1.5, "aim": 1.35},
        {"model": "M-VAR", "work": "training", "official_s": 3.3, "ours_s": 3.0, "ratio": 1.1, "aim": 1.2},
    ]
    rows = [row | {"products_share": 0.801} for row in rows]
    path.write_text(json.dumps({"machine": {"cpu": "C", "threads": 1, "torch": "2"}, "settings": sizes, "rows": rows}))
    text = table(path)
    assert text.startswith("C, threads: 1, torch 2; depth 8, width 512, 256 px, batch 4, fp32, medians of 5.")
    assert "| VAR | sampling | 3.00 | 2.00 | 1.50 | 1.35 |  |  |" in text
    assert "| M-VAR | training | 3.30 | 3.00 | 1.10 | 1.20 | 80% | 1.37 |" in text
    for (model, work), aim in official.AIMS.items():  # as the page says them
        assert f"{aim:g}" in section("performance.md", "Beside the official code"), (model, work)


def test_stored_tables_are_all_used():
    used = {name for names in SECTIONS.values() for name in names} | {"compare-two-mixers"}  # tests/test_compared.py
    assert used == {path.stem for path in (DOCS / "seen").glob("*.csv")}
