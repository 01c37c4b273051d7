"""What CI looks through after the demo: a whole report passes, and whatever is taken from it is named."""

import importlib.util
import json
from pathlib import Path

import pytest

from mvar.analysis.report import write_report

PATH = Path(__file__).parents[2] / ".ci/check_report.py"
SPEC = importlib.util.spec_from_file_location("check_report", PATH)
check_report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_report)


@pytest.fixture
def whole(results):
    _, configs = results.sweep("mixers")
    for config in configs:
        (results.store.run(config.run_id).samples(config.evaluation_id) / "grid.png").touch()
    write_report(results.root)
    return results.root, configs


def wrong(root):
    return " | ".join(check_report.wrong(root))


@pytest.mark.slow
def test_a_whole_report_passes_and_what_is_taken_from_it_is_named(whole):
    root, configs = whole
    assert wrong(root) == ""
    (root / "report/figures/samples-mixers-digits-steps.png").unlink()
    assert "figures/samples-mixers-digits-steps.png, which is not there" in wrong(root)
    (root / "report/tables/table1.tex").write_text("")
    assert "table1.tex is no .tex file" in wrong(root)
    (root / "report/report.html").unlink()
    assert "report.html is not there" in wrong(root)
    write_report(root)
    assert wrong(root) == ""
    next(root.glob(f"runs/{configs[0].run_id}/samples/*/grid.png")).unlink()
    assert f"run {configs[0].run_id} has no grid of samples" in wrong(root)


@pytest.mark.slow
def test_a_run_that_failed_is_named_also_where_the_report_says_so(whole):
    root, configs = whole
    path = root / "runs" / configs[1].run_id / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "failed", "reason": "a test"}))
    assert f"run {configs[1].run_id} is failed" in wrong(root)
    write_report(root)
    assert "## Missing" in wrong(root) and "differ in runs" in wrong(root)


@pytest.mark.slow
def test_a_mixer_of_ones_own_stands_in_the_report_beside_the_papers(results):
    _, configs = results.sweep("mixers", overrides={"model.replace": "first:4"})
    for config in configs:
        (results.store.run(config.run_id).samples(config.evaluation_id) / "grid.png").touch()
    write_report(results.root)
    assert wrong(results.root) == ""
    (table,) = (results.root / "report/tables").glob("mixers-*[0-9a-f].csv")
    assert configs[-1].run_id in table.read_text()
    assert r"| 4\*intra+mamba 4\*global | 4\*intra+mamba 4\*global |" in (results.root / "report/report.md").read_text()
    assert ">4*intra+mamba 4*global<" in (results.root / "report/report.html").read_text()
