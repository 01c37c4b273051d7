"""What a report may delete: what the last one wrote, unchanged, in folders of its own."""

import json
import shutil

import pytest

from mvar import cli, layout
from mvar.analysis.report import write_report
from mvar.analysis.written import Written
from mvar.config import override
from mvar.errors import UserError
from mvar.files import file_digest
from mvar.presets import DIGITS

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def made(fabricated, tmp_path_factory):
    """A report of one sweep. Not to be changed."""
    results = fabricated(tmp_path_factory.mktemp("made") / "results")
    results.sweep("mixers")
    write_report(results.root)
    return results


@pytest.fixture
def reported(made, fabricated, tmp_path):
    """A report with a table of differences, and a results directory whose next one has none."""
    shutil.copytree(made.root, tmp_path / "results")
    results = fabricated(tmp_path / "results")
    report = results.root / "report"
    assert (report / "tables" / "mixers-digits-steps-differences.csv").is_file()
    results.store.manifest_path("mixers-digits-steps").unlink()
    return results, report


def test_a_file_of_the_last_report_that_this_one_lacks_is_deleted(reported):
    results, report = reported
    write_report(results.root)
    for kind in ("csv", "tex"):
        assert not (report / "tables" / f"mixers-digits-steps-differences.{kind}").exists()
    assert not list((report / "figures").glob("loss-*"))
    files = json.loads((report / layout.REPORT_FILES).read_text())["files"]
    there = {str(path.relative_to(report)) for folder in ("tables", "figures") for path in (report / folder).iterdir()}
    assert set(files) == there and all(file_digest(report / name) == digest for name, digest in files.items())


@pytest.mark.slow
def test_files_of_the_user_stay(reported):
    results, report = reported
    own = [report / "tables" / "mine.csv", report / "figures" / "mine.png", report / "notes.md", report / "tables/.x"]
    for path in own:
        path.write_text("mine")
    changed = report / "tables" / "mixers-digits-steps-differences.csv"
    changed.write_text(changed.read_text() + "my own row\n")
    folder = report / "tables" / "more"
    folder.mkdir()
    (folder / "x").write_text("mine")
    for _ in range(2):
        write_report(results.root)
        assert [path.read_text() for path in [*own, folder / "x"]] == ["mine"] * 5
        assert changed.read_text().endswith("my own row\n")
        assert not changed.with_suffix(".tex").exists()  # not changed: ours


def test_without_a_list_nothing_is_deleted(reported):
    results, report = reported
    before = {path.name for path in (report / "tables").iterdir()}
    (report / layout.REPORT_FILES).unlink()
    write_report(results.root)
    assert before <= {path.name for path in (report / "tables").iterdir()}


STRANGE = (b"", b"[]", b'{"files": []}', b'{"files": {"tables/x": 3}}', b"\xff")


@pytest.mark.parametrize("content", [b"{", *(pytest.param(x, marks=pytest.mark.slow) for x in STRANGE)])
def test_a_damaged_list_deletes_nothing_and_is_made_anew(reported, content):
    results, report = reported
    (report / layout.REPORT_FILES).write_bytes(content)
    write_report(results.root)
    assert (report / "tables" / "mixers-digits-steps-differences.csv").is_file()
    assert "tables/runs.csv" in json.loads((report / layout.REPORT_FILES).read_text())["files"]


def test_a_list_of_strangers_reaches_nothing_else(tmp_path):
    report = tmp_path / "report"
    for name in ("theirs", "report/report.md", "report/tables/sub/x", "report/tables/linked"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for name in ("theirs", "report/report.md", "report/tables/sub/x"):
        (tmp_path / name).write_text("x")
    (report / "tables" / "linked").symlink_to(tmp_path / "theirs")
    digest = file_digest(tmp_path / "theirs")
    names = ["../theirs", str(tmp_path / "theirs"), "tables/../../theirs", "report.md", "tables/sub/x", "tables/linked"]
    (report / layout.REPORT_FILES).write_text(json.dumps({"files": dict.fromkeys(names, digest)}))
    Written(report).finish()
    assert (tmp_path / "theirs").exists() and (report / "report.md").exists() and (report / "tables/sub/x").exists()
    assert (report / "tables" / "linked").is_symlink()


@pytest.mark.parametrize("name", ["tables", "figures"])
def test_a_linked_folder_of_the_report_is_refused_and_untouched(results, tmp_path, capsys, name):
    results.sweep("mixers")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "x.csv").write_text("theirs")
    report = results.root / "report"
    report.mkdir()
    (report / name).symlink_to(theirs)
    with pytest.raises(UserError, match="is a link to"):
        write_report(results.root)
    assert cli.main(["report", "--results", str(results.root)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("mvar: error: report: ") and f"report/{name} is a link to {theirs}" in line
    assert [path.name for path in theirs.iterdir()] == ["x.csv"] and (theirs / "x.csv").read_text() == "theirs"


@pytest.mark.slow
def test_linked_files_of_the_report_are_replaced(reported, tmp_path):
    results, report = reported
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    names = ["report.md", "report.html", "cache.json", layout.REPORT_FILES, "tables/runs.csv", "figures/table1.png"]
    for name in names:
        (report / name).unlink()
        (report / name).symlink_to(theirs)
    write_report(results.root)
    assert theirs.read_text() == "theirs"
    assert not [name for name in names if (report / name).is_symlink()]


@pytest.mark.slow
def test_results_and_runs_on_another_disk_are_reported(results, tmp_path):
    _, configs = results.sweep("mixers")
    runs = results.root / "runs"
    runs.rename(tmp_path / "disk")
    runs.symlink_to(tmp_path / "disk")
    (tmp_path / "here").symlink_to(results.root)
    path = write_report(tmp_path / "here")
    assert "4 finished runs; 4 of the 4" in path.read_text() and configs[0].run_id in path.read_text()
    assert runs.is_symlink()


def test_all_of_a_report_goes_to_out_and_nothing_to_results_that_may_only_be_read(results, tmp_path, capsys):
    results.run(override(DIGITS, {"model.pattern": "intra+mamba"}))
    there, out = sorted(results.root.rglob("*")), tmp_path / "new" / "mine"
    command = ["report", "--results", str(results.root), "--out"]
    assert cli.main([*command, str(out)]) == 0 and f"page: {out / 'report.html'}\n" in capsys.readouterr().out
    names = {"report.md", "report.html", "tables", "figures", "cache.json", layout.REPORT_FILES}
    assert {path.name for path in out.iterdir()} == names
    assert sorted(results.root.rglob("*")) == there
    assert cli.main([*command, str(out / "report.md")]) == 2
    told = f"out: {out / 'report.md'} is a file; allowed: a folder, made if it is missing"
    assert capsys.readouterr().err == f"mvar: error: {told}\n"
