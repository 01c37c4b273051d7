"""Whatever is wrong with the runs: one clear line in the report and from the command, and the rest is written."""

import json
import shutil

import pytest

from mvar import cli
from mvar.analysis.cache import ReadCache
from mvar.analysis.records import load_records
from mvar.analysis.report import write_report
from mvar.analysis.writer import Writer
from mvar.config import override
from mvar.presets import DIGITS


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Without figures, which have tests of their own and take most of the time."""
    monkeypatch.setattr(Writer, "figure", lambda self, what, make, *arguments: None)


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def metrics(values):
    return next(iter(values["evaluations"].values()))["metrics"]


CASES = {
    "no run there": (lambda run: shutil.rmtree(run.path), None, "not there"),
    "half a run": (
        lambda run: run.write_status("running", "train", step=7, steps=240),
        "running in train, step 7 of 240",
        "running",
    ),
    "another schema": (
        lambda run: edit(run.path / "config.json", lambda v: v.update(schema_version=9)),
        "schema_version is 9; allowed: 1",
        "not there",
    ),
    "a NaN metric": (
        lambda run: edit(run.path / "eval.json", lambda v: metrics(v).update({"eval/fid": float("nan")})),
        "eval/fid is nan, not a number; its cells are dashes",
        None,
    ),
    "corrupt JSON": (
        lambda run: (run.path / "eval.json").write_text('{"eval'),
        "eval.json: not valid JSON",
        "evaluation",
    ),
    "mixed evaluators": (
        lambda run: edit(
            run.path / "eval.json", lambda v: next(iter(v["evaluations"].values())).update(extractor_id="other")
        ),
        "evaluations differ in extractor_id",
        None,
    ),
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("case", CASES)
def test_one_line_and_the_rest_is_written(results, case):
    damage, told, why = CASES[case]
    _, configs = results.sweep("mixers")
    results.sweep("layers")
    damaged = configs[1]  # intra: in Table 6 alone
    damage(results.store.run(damaged.run_id))
    problems = []
    text = write_report(results.root, complain=problems.append).read_text()
    if told:
        (line,) = [problem for problem in problems if told in problem]
        assert damaged.run_id in line and "\n" not in line
        assert line.replace(f"{results.root}/", "") in text.split("## Problems")[1]
    if why:
        table6 = text.split("## Table 6")[1].split("## ")[0]
        assert f"Missing here: 1 (intra-only) ({damaged.run_id}: " in table6 and why in table6
        assert "Command: `mvar run mixers --preset digits`" in table6
    for heading in ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 5"):
        assert f"## {heading}" in text
    assert "| 0 of 8 | 1.60 | 3.55 |" in text  # Figure 5 has nothing to do with the damage
    assert (results.root / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.usefixtures("undrawn")
def test_without_global_layers_table_1_has_its_cost_and_says_so(results, capsys):
    results.run(override(DIGITS, {"model.pattern": "intra+mamba"}))
    assert cli.main(["report", "--results", str(results.root)]) == 0
    text = (results.root / "report" / "report.md").read_text()
    (line,) = [line for line in text.splitlines() if "score is not measured" in line]
    assert "`intra+mamba` (1)" in line
    assert capsys.readouterr().err == "" and "## Problems" not in text  # such a grid is no fault
    assert "| 512 px, VAR-d36, L = 2,240 | intra-scale | 30.34 | 46.55 |" in text


# What was read is kept ----------------------------------------------------------------------------------------------


def contents(results):
    folder = results.root / "report"
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "cache.json"}


def test_only_what_changed_is_read_again(results):
    _, configs = results.sweep("mixers", seeds=(0, 1))
    write_report(results.root)
    first, path = contents(results), results.root / "report" / "cache.json"
    cache = ReadCache(path)
    load_records(results.root, cache)
    assert cache.num_read == 0
    write_report(results.root)
    assert contents(results) == first
    edited = results.store.run(configs[0].run_id).path / "eval.json"
    edit(edited, lambda v: metrics(v).update({"eval/fid": 123.25}))
    cache = ReadCache(path)
    records = load_records(results.root, cache)
    assert cache.num_read == 1 and 123.25 in set(records.table["eval/fid"])
    assert "| VAR | global | 62.48 ± 85.95 |" in write_report(results.root).read_text()  # with seed 1's 1.70


DAMAGED = ["", "{", "[1]", '{"version": 0, "values": {}}', '{"version": 1, "values": {"a": 1}}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_cache_is_ignored(results, content):
    results.sweep("mixers")
    write_report(results.root)
    first, path = contents(results), results.root / "report" / "cache.json"
    path.write_text(content)
    write_report(results.root)
    assert contents(results) == first


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_problems_are_kept_too_and_go_when_they_are_mended(results):
    _, configs = results.sweep("mixers")
    run = results.store.run(configs[0].run_id)
    whole = (run.path / "eval.json").read_text()
    (run.path / "eval.json").write_text("{")
    for _ in range(2):
        problems = []
        write_report(results.root, complain=problems.append)
        assert [p for p in problems if "eval.json: not valid JSON" in p]
    (run.path / "eval.json").write_text(whole)
    problems = []
    write_report(results.root, complain=problems.append)
    assert problems == []
