"""Each script of `analysis/` by itself, as `python analysis/NAME.py --results R` calls it, and a user's copy of one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mvar import cli, shipped
from mvar.analysis.contract import Analysis, find_analysis
from mvar.analysis.report import main

NAMES = shipped.names("analysis")
FIGURES = {  # of `everything`: all requests of the digits preset at equal steps
    "attention_cost": {"table1", "attention-digits"},
    "cost": {"fid-cost-digits-steps"},
    "guidance": {"guidance-digits-steps"},
    "imagenet": {"figure2"},
    "costs_by_length": {"inter_scale-lengths-digits-steps"},
    "inter_scale": {"inter_scale-digits-steps"},
    "knockout": {f"knockout-{name}-digits" for name in ("matrices", "heads", "scatter")},
    "layers": {"layers-digits-steps"},
    "likelihood": {"nll-by-scale-digits-steps"},
    "loss": {"loss-digits-steps"},
    "overfitting": {"overfitting-digits-steps"},
    "probes": {"probe-state"},
    "samples": {"samples-mixers-digits-steps"},
    "scaling": {"scaling-digits-steps"},
}
TABLES = {
    "attention_cost": {"table1"},
    "cost": set(),
    "guidance": {f"guidance-digits-steps{end}" for end in ("", "-differences", "-pairs")},
    "imagenet": {"table2", "table3", "table4"},
    "costs_by_length": {
        f"inter_scale-digits-steps{end}" for end in ("", "-differences", "-lengths", "-latency", "-latency-models")
    },
    "inter_scale": {f"inter_scale-digits-steps{end}" for end in ("", "-differences", "-own", "-own-size")},
    "knockout": {"table1b"},
    "probes": {"probe-state"},
    "layers": {"layers-digits-steps", "layers-digits-steps-differences"},
    "scaling": {"scaling-digits-steps", "scaling-digits-steps-laws"},
}
ROWS = {"knockout": {"table1b-cuts"}}  # a row for each cut: for programs, on no page and in no LaTeX
OF_MIXERS = {"mixers-digits-steps", "mixers-digits-steps-differences"}
TABLES["overfitting"] = OF_MIXERS | {"overfitting-digits-steps"}
ALONE = {"guidance": "guidance", "inter_scale": "inter_scale", "costs_by_length": "inter_scale", "scaling": "scaling"}
# drawn only where its experiment was asked for


@pytest.fixture(scope="module")
def asked(tmp_path_factory, fabricated):
    """Every experiment that a script draws, one seed each."""
    made = fabricated(tmp_path_factory.mktemp("asked") / "results")
    for name in ("parameters", "layers", "mixers", "guidance", "inter_scale", "scaling"):
        made.sweep(name)
    run = made.store.run(next(path.name for path in sorted(made.root.glob("runs/digits-*-global-*"))))
    made.cut(run)
    made.probe(run)
    return made.root


def stems(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*{suffix}")}


def assert_whole(folder: Path, name: str) -> None:
    """The page, and its tables and figures and no others."""
    figures, tables = FIGURES[name], TABLES.get(name, OF_MIXERS)
    assert stems(folder / "figures", ".pdf") == figures
    assert stems(folder / "figures", ".png") == {f"{name}{dark}" for name in figures for dark in ("", ".dark")}
    assert stems(folder / "tables", ".csv") == tables | ROWS.get(name, set())
    assert stems(folder / "tables", ".tex") == tables | {"tables"}
    page = (folder / "page.md").read_text()
    assert page.startswith(f"# {find_analysis(name).title}")
    assert set(re.findall(r"\]\(figures/([^)]+)\.png\)", page)) == figures
    html = (folder / "page.html").read_text()
    assert html.startswith("<!DOCTYPE html>") and html.count("data:image/png") == 2 * len(figures)


@pytest.mark.parametrize("name", NAMES)
def test_each_draws_its_own_page(name, asked, tmp_path, capsys):
    assert main(find_analysis(name), ["--results", str(asked), "--out", str(tmp_path)]) == 0
    assert f"page: {tmp_path}/page.html" in capsys.readouterr().out
    assert_whole(tmp_path, name)


def test_a_law_of_what_does_not_vary_has_no_correlation(asked, tmp_path, recwarn):
    assert main(find_analysis("scaling"), ["--results", str(asked), "--out", str(tmp_path)]) == 0
    laws = (tmp_path / "tables" / "scaling-digits-steps-laws.csv").read_text()
    assert "nan" not in laws.lower() and "nan" not in (tmp_path / "page.md").read_text()
    assert not [warned for warned in recwarn if issubclass(warned.category, RuntimeWarning)]


@pytest.mark.parametrize("name", NAMES)
def test_without_any_run_one_line_and_a_page_of_dashes(name, tmp_path, capsys):
    assert main(find_analysis(name), ["--results", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    command = f"`mvar run {ALONE[name]}` makes one" if name in ALONE else "holds no readable run; `mvar run mixers`"
    assert line.startswith(f"mvar: error: results: {tmp_path} ") and command in line
    page = tmp_path / "analysis" / name / "page.md"
    assert page.is_file() == (name not in ALONE)
    if name not in {*ALONE, "cost", "knockout", "probes"}:  # figures, or what no command has measured: there is nothing
        assert "—" in page.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_not_there_is_not_made(name, tmp_path, capsys):
    assert main(find_analysis(name), ["--results", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no directory; allowed: one that `mvar run` has made" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_runs_that_have_nothing_to_draw(results, capsys):
    results.sweep("rejection", make=False)
    results.sweep("layers")
    for path in results.root.glob("runs/*/eval.json"):
        path.unlink()
    assert main(find_analysis("cost"), ["--results", str(results.root)]) == 1
    assert "cost: the runs of" in capsys.readouterr().err.splitlines()[-1]


def test_a_full_disk_is_one_line(results, tmp_path, capsys):
    results.sweep("layers")
    (tmp_path / "file").write_text("")
    assert main(find_analysis("layers"), ["--results", str(results.root), "--out", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert "Not a directory" in error and "Traceback" not in error


def test_an_analysis_that_no_experiment_names(asked, tmp_path, capsys):
    own = Analysis("mine", "Mine", lambda page, manifest, table: None, of="sweep")
    assert main(own, ["--results", str(asked), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    allowed = "costs_by_length, guidance, inter_scale, layers, likelihood, loss"
    assert f"analysis: 'mine' is among the figures of no experiment; allowed: {allowed}" in error


def python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # a terminal of the first Unix systems: what cannot be said in ASCII must not end it
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_runs_as_a_script(name, asked, tmp_path):
    """In a folder whose name is not ASCII, beside other files of the names of ours."""
    folder = tmp_path / "été"
    folder.mkdir()
    for other in NAMES:
        (folder / f"{other}.py").write_text("raise RuntimeError('a stranger')\n")
    done = python(str(shipped.find("analysis", name)), "--results", str(asked), "--out", str(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert_whole(folder, name)


def test_a_copy_that_was_edited_draws_what_it_says(asked, tmp_path, monkeypatch):
    """And not the file that it was copied from."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["copy", "analysis/layers.py", "elsewhere/mine.py"]) == 0
    copy = tmp_path / "elsewhere" / "mine.py"
    copy.write_text(copy.read_text().replace("{manifest.artefact}: {", "My figure: {"))
    assert main(shipped.load(copy).ANALYSIS, ["--results", str(asked), "--out", "out"]) == 0
    assert_whole(tmp_path / "out", "layers")
    assert "My figure: digits, equal steps" in (tmp_path / "out" / "page.md").read_text()
