"""Whether a results directory has all its sweeps asked for, and a report that shows them: `check_report.py RESULTS`.

Needs nothing but Python. Prints one line for everything that is wrong and then exits with 1. Numbers are not judged.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

BEGINS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".html": b"<!DOCTYPE html>"}
PARTNER = {".csv": ".tex", ".tex": ".csv", ".png": ".pdf", ".pdf": ".png"}
ALONE = ("runs.csv", "tables.tex")
DARK = ".dark.png"  # of a figure on a dark page


def wrong(results: Path) -> Iterator[str]:
    """Everything that is not as it should be, a line each."""
    report = results / "report"
    pages = [report / "report.md", report / "report.html"]
    if absent := [page for page in pages if not page.is_file()]:
        yield from (f"{page} is not there" for page in absent)
        return
    manifests = [
        json.loads(path.read_text()) | {"name": path.stem} for path in sorted((results / "sweeps").glob("*.json"))
    ]
    if not manifests:
        yield f"{results}: no sweep was asked for"
    for manifest in manifests:
        alike = [other for other in manifests if other["sweep"] == manifest["sweep"]]
        yield from _sweep(results, manifest, alike)
    markdown, html = (page.read_text() for page in pages)
    sections = re.findall(r"^## (?:Missing|Problems)$|\*\*Not compared\.\*\*.*", markdown, re.M)
    sections += re.findall(r'id="(?:missing|problems)"', html)
    yield from (f"the report has {section!r}" for section in sections)
    links = sorted(set(re.findall(r"\]\((?!#|http)([^)]+)\)", markdown)))
    yield from (f"report.md leads to {link}, which is not there" for link in links if not (report / link).exists())
    figures = {link for link in links if link.endswith(".png")}
    if html.count("<figure") < len(figures) or html.count("data:image/png") < len(figures):
        yield f"report.html shows fewer pictures than the {len(figures)} of report.md"
    yield from _files(report)


def _runs(manifest: dict) -> set[str]:
    return {run for cell in manifest["cells"] for run in cell["run_ids"]}


def _table(results: Path, manifest: dict, alike: list[dict]) -> Path:
    """Its own, or that of a request that differs in a pattern of one's own alone: those are one table."""
    own, *others = [results / "report/tables" / f"{m['name']}.csv" for m in (manifest, *alike)]
    has_all = (p for p in others if p.is_file() and all(run in p.read_text() for run in _runs(manifest)))
    return own if own.is_file() else next(has_all, own)


def _sweep(results: Path, manifest: dict, alike: list[dict]) -> Iterator[str]:
    name, table = manifest["name"], _table(results, manifest, alike)
    asked = _runs(manifest)
    for run in sorted(asked):
        status = results / "runs" / run / "status.json"
        state = json.loads(status.read_text())["state"] if status.is_file() else "not there"
        if state != "done":
            yield f"run {run} is {state}"
        elif not all(
            (results / "runs" / run / "samples" / evaluation / "grid.png").is_file()
            for cell in manifest["cells"]
            for evaluation in cell["evaluation_ids"]
            if run in cell["run_ids"]
        ):
            yield f"run {run} has no grid of samples"
    if not table.is_file():
        yield f"sweep {name} has no table"
        return
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    shown = {run for row in rows for run in row["run_ids"].split()}
    if differing := (asked - shown) | (shown - set().union(*map(_runs, alike))):
        yield f"{table.name} and the sweep differ in runs: {' '.join(sorted(differing))}"
    yield from (f"{table.name}: {row['label']} has no FID" for row in rows if row["run_ids"] and not row["fid"])
    if manifest["sweep"] == "mixers" and not list((results / "report/figures").glob(f"samples-{table.stem}.png")):
        yield f"sweep {name} has no picture of samples"


def _files(report: Path) -> Iterator[str]:
    paths = [path for path in sorted(report.rglob("*")) if path.is_file()]
    for path in paths:
        if path.name.endswith(DARK):
            if not (light := path.with_name(path.name.removesuffix(DARK) + ".png")).is_file():
                yield f"{path.name} is there, but not {light.name}"
        elif path.name not in ALONE and path.suffix in PARTNER and not path.with_suffix(PARTNER[path.suffix]).is_file():
            yield f"{path.name} is there, but not as {PARTNER[path.suffix]}"
        if not path.read_bytes().startswith(BEGINS.get(path.suffix, b"")) or not path.stat().st_size:
            yield f"{path.name} is no {path.suffix} file"
    found = {path.suffix for path in paths}
    yield from (f"the report has no {suffix} file" for suffix in sorted({*PARTNER, *BEGINS} - found))


if __name__ == "__main__":
    lines = list(wrong(Path(sys.argv[1])))
    print("\n".join(lines) or f"{sys.argv[1]}: every run is there, and the report is whole")
    sys.exit(bool(lines))
