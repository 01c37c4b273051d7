"""The report as a whole: complete with all runs, and still written whatever is wrong with some."""

import io
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mvar import cli, shipped
from mvar.analysis.background import FLOORS_ARE, data_lines, floor_rows, floors_are, other_references
from mvar.analysis.compare import new_images_interval
from mvar.analysis.document import Section
from mvar.analysis.grids import first_of_each_class, read_samples, tile
from mvar.analysis.opening import lift, picture
from mvar.analysis.records import load_records
from mvar.analysis.render import cell_text
from mvar.analysis.report import write_report
from mvar.analysis.style import Figure
from mvar.analysis.summary import _floor_lines
from mvar.analysis.tables import sweep_table
from mvar.config import override
from mvar.presets import PRESETS


def test_all_of_it_is_there(whole, everything):
    path, text, calls = whole
    assert path == everything.root / "report" / "report.md"
    for heading in ("Table 1", "Table 5", "Table 6", "Figure 5", "Floors", "FID against cost"):
        assert re.search(rf"^##+ {heading}", text, re.MULTILINE), heading
    assert str(everything.root) not in text
    assert "## Missing" not in text and "## Problems" not in text
    done, (total,) = [call[0] for call in calls], {call[1] for call in calls}
    assert sorted(set(done)) == list(range(total + 1)) and done == sorted(done)
    told = [call[2] for call in calls]
    assert {"Table 1: attention score and cost", "figure table1", "Table 6: mixers, digits, equal steps"} <= set(told)


def test_the_first_screen_says_what_was_run_and_found(whole, everything):
    first = whole[1].split("\n## ")[0]
    assert "17 finished runs; 17 of the 17 that sweeps asked for are here." in first
    assert "mixers (Table 6), parameters (Table 5), layers (Figure 5)" in first
    assert "FID 1.10 ± 0.10 for M-VAR (`intra+mamba`), 1.70 ± 0.10 for VAR (`global`)" in first
    assert "(difference -0.60 [-0.60, -0.60] over 3 seeds: better (p below 0.001))" in first
    assert (
        "FID: 1.60 (0 of 8), 1.00 (8 of 8). 8 of 8 against 0 of 8 is inconclusive: one seed" in first
        and "Attention, digits" in first
    )
    assert "FID on digits" in first and "real training images 0.22" in first
    picture = "](figures/samples-mixers-digits-steps.png)"
    assert picture in first and whole[1].count(picture) == 1 and "Their samples are above" in whole[1]
    assert "Rows of one seed" in first and "layers (digits, equal steps)" in first
    assert "is biased upwards" in first
    low, high = new_images_interval(0.05, 450, 1000)  # held-out and drawn images
    assert f"near-copies of training images than new images would have ({low:.1%} to {high:.1%}, 95 %)" in first


def test_the_first_screen_shows_samples_of_its_own_rows():
    """Not those of a grid of the same setting, which may stand before."""
    figures = [Figure(f"samples-{name}-digits-steps", "", "") for name in ("guidance-demo", "mixers")]
    sections, of = [Section("a", figures)], SimpleNamespace(name="mixers-digits-steps", tag="digits-steps")
    assert picture(sections, of) is figures[1]
    lift(figures[1], sections)
    assert sections[0].blocks[0] is figures[0] and figures[1] not in sections[0].blocks


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_the_first_screen_counts_what_the_tables_use(results):
    """Runs and evaluations that no sweep asked for are told apart, and change neither seeds nor images."""
    _, configs = results.sweep("mixers", seeds=(0, 1))
    results.run(override(configs[0], {"seed": 7}))
    drawn_more = override(configs[0], {"sample.seed": 5, "evaluation.num_images": 60})
    results.store.run(configs[0].run_id).add_evaluation(drawn_more.evaluation_id, results.evaluation(drawn_more))
    records = load_records(results.root)
    first = write_report(results.root).read_text().split("\n## ")[0]
    assert (
        "8 finished runs; 8 of the 8 that sweeps asked for are here. In no sweep's table: 1 more finished run." in first
    )
    images = configs[0].evaluation.num_images
    assert f"2 training seeds, 1 set of {images:,} images a run; data: digits." in first
    table = sweep_table(records, records.manifests[0])
    assert {run_id for ids in table.run_ids for run_id in ids} == {config.run_id for config in configs}
    assert max(row["n"] for row in table.rows) == 2


def test_kid_stands_in_the_table_with_an_error_of_both_sets(everything):
    records = load_records(everything.root)
    table = sweep_table(records, records.sweeps("mixers")[0])
    headings = {column.key: column for column in table.columns}
    row = table.rows[0]
    assert cell_text(headings["kid"], row["kid"]).startswith("10.00") and row["kid_se"].mean == pytest.approx(0.002)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_runs_csv_has_guidance_and_every_other_setting_of_sampling(results):
    results.sweep("mixers")
    _, (config, *_) = results.sweep("guidance", make=False)
    results.run(override(config, {"sample.cfg_scale": 2.5}))
    written = pd.read_csv(write_report(results.root).parent / "tables" / "runs.csv")
    assert sorted(set(written["sample.cfg_scale"])) == [1.5, 2.5]
    assert "sample.ema" not in written  # nobody asked for one
    assert {"sample.top_k", "sample.top_p", "sample.more_smooth"} <= set(written.columns)


def test_a_setting_at_its_default_is_no_empty_cell(results):
    """EMA 0 is not stored, and stands in `runs.csv` beside EMA 1000; a run without evaluation has none."""
    config = override(PRESETS["digits"], {"train.ema": (1000,)})
    for ema in (0, 1000):
        one = override(config, {"sample.ema": ema})
        results.run(one) if not ema else None
        results.store.run(one.run_id).add_evaluation(one.evaluation_id, results.evaluation(one))
    results.run(other := override(config, {"seed": 3}))
    (results.store.run(other.run_id).path / "eval.json").unlink()
    table = load_records(results.root).table
    assert sorted(table["sample.ema"].dropna()) == [0, 1000] and len(table) == 3


def test_nothing_run_yet_of_what_was_asked_for(results):
    manifest, _ = results.sweep("mixers", make=False)
    problems = []
    text = write_report(results.root, complain=problems.append).read_text()
    assert len(problems) == 1 and "holds no readable run" in problems[0]
    assert "0 finished runs; 0 of the 4 that sweeps asked for are here, 4 are [missing](#missing)." in text
    assert "Table 6 is not measured yet" in text
    for cell in manifest["cells"]:
        assert f"{cell['label']} ({cell['run_ids'][0]}: not there)" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_requests_with_other_settings_have_titles_and_files_of_their_own(results):
    results.sweep("mixers")
    results.sweep("mixers", overrides={"train.steps": "50"})
    path = write_report(results.root)
    titles = re.findall(r"^## (Table 6.*)$", path.read_text(), re.MULTILINE)
    assert sorted(titles) == [
        "Table 6: mixers, digits, equal steps",
        "Table 6: mixers, digits, equal steps, train.steps=50",
    ]
    for kind in ("loss", "nll-by-scale", "samples-mixers", "fid-cost"):
        assert len(list((path.parent / "figures").glob(f"{kind}-*.pdf"))) == 2, kind
    anchors = re.findall(r'<section id="([^"]+)"', path.with_suffix(".html").read_text())
    assert len(anchors) == len(set(anchors))


def test_floors_extractor_machine_and_sizes_are_told(whole):
    _, text, _ = whole
    assert "99.7% of held-out images classified rightly" in text
    assert "none of these compares with an ImageNet FID" in text
    # each floor has its own number of images, and none is called a bound
    rows = [line for line in text.splitlines() if line.startswith("| FID") and "| digits |" in line]
    assert len({re.search(r"\| ([\d,]+) against", line)[1] for line in rows}) == 3
    assert "They are marks to read a table by and no bounds" in text
    assert (
        re.search(r"\| 0.155 \| digits \| 4\d\d against the same \|", text)
        and "| 0.870 ± 0.040 |" in text
        and "FID(real, real)" in text
    )
    assert re.search(r"\*\*digits\*\*: 1,3\d\d training and 4\d\d held-out images, 10 classes, 8 × 8 px", text)
    assert "**Machine**: a CPU, 2 CPUs" in text and "PyTorch 2.15.0" in text


def test_another_reference_is_said_beside_the_floors(results):
    """Floors are against held-out images: what FIDs are against in their place is named, and has none."""
    _, configs = results.sweep("mixers")
    records = load_records(results.root)
    assert floors_are(records) == FLOORS_ARE and "resized" not in data_lines(records, [])[0]
    for told in ({"file": "of_adm.npz", "sha256": "0" * 64}, {"split": "heldout", "resize_factor": 1.0}):
        record = results.evaluation(configs[0])
        record["reference"] = {**told, "num_images": 450}
        results.store.run(configs[0].run_id).add_evaluation(next(iter(told)), record)
    records = load_records(results.root)
    others = ["the statistics of of_adm.npz", "held-out images resized to 1 times their size"]
    assert sorted(other_references(records.done)) == sorted(others)
    assert all(one in text for one in others for text in (floors_are(records), data_lines(records, [])[0]))
    (line,) = _floor_lines(floor_rows(records, []), others)
    assert "FID on digits, against held-out images: " in line and f"here against {' or '.join(others)}." in line


def test_every_link_is_relative_and_leads_somewhere(whole):
    path, text, _ = whole
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 30
    for link in links:
        assert not link.startswith("/") and (path.parent / link).exists(), link


def test_tables_and_figures_come_in_all_forms(whole):
    path, _, _ = whole
    sweeps = [f"{sweep}-digits-steps" for sweep in ("parameters", "mixers", "layers")]
    stems = {
        *sweeps,
        *(f"{name}-differences" for name in sweeps),
        *(f"table{n}" for n in (1, 2, 3, 4)),
        "floors",
        "overview",
        "overview-verdicts",
    }
    stems |= {"overfitting-digits-steps"}
    assert {p.stem for p in (path.parent / "tables").glob("*.csv")} == stems | {"runs"}
    assert {p.stem for p in (path.parent / "tables").glob("*.tex")} == stems | {"tables"}
    drawn = {p.stem for p in (path.parent / "figures").glob("*.pdf")}
    assert {p.stem for p in (path.parent / "figures").glob("*.png")} == {
        n + dark for n in drawn for dark in ("", ".dark")
    }
    by_sweep = ("layers", "samples-mixers", "nll-by-scale", "loss", "overfitting", "fid-cost")
    assert drawn == {"table1", "figure2", "attention-digits", *(f"{name}-digits-steps" for name in by_sweep)}


def test_the_same_numbers_give_the_same_bytes(whole, everything, tmp_path):
    path, _, _ = whole
    records = load_records(everything.root)
    (manifest,) = records.sweeps("layers")
    script = shipped.load(shipped.find("analysis", "layers"))
    script.layers_figure(sweep_table(records, manifest), manifest, tmp_path)
    for drawn in sorted(tmp_path.iterdir()):
        assert drawn.read_bytes() == (path.parent / "figures" / drawn.name).read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_without_runs_there_is_what_needs_none(tmp_path, capsys):
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()
    assert line.startswith("mvar: error: results:") and "holds no readable run" in line and "`mvar run mixers`" in line
    text = (tmp_path / "report" / "report.md").read_text()
    for heading in ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 5"):
        assert re.search(rf"^## {heading}", text, re.MULTILINE), heading
    assert "| 256 px, VAR-d16, L = 680 | intra-scale | 23.89 | 38.57 |" in text
    assert "| M-VAR | intra+mamba | — | 3.07 | — |" in text  # Table 6: printed, not measured
    assert "No run of this was asked for yet. Command: `mvar run mixers`" in text
    assert "Missing here: VAR-d16, M-VAR-d16. Command: `mvar run mixers --preset imagenet256-d16-online`" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_problems_are_said_on_stderr_and_the_report_is_written(results, capsys):
    _, configs = results.sweep("mixers")
    results.store.run(configs[1].run_id).write_status("stopped", "train", step=120, steps=600)
    path = results.store.run(configs[0].run_id).metrics
    path.write_text('{"step": 10, "train/lo\n' + path.read_text())
    assert cli.main(["report", "--results", str(results.root)]) == 0
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert all(line.startswith("mvar: warning: ") for line in lines)
    assert any(configs[1].run_id in line and "stopped in train, step 120 of 600" in line for line in lines)
    assert any("metrics.jsonl line 1: not valid JSON" in line for line in lines)
    assert lines[-1] == (
        f"mvar: warning: {len(lines) - 1} problems; the report is written all the same, and lists them under Problems"
    )
    assert f"report: {results.root}/report/report.md" in said.out and "report.html" in said.out


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_the_report_says_what_it_is_at(results, monkeypatch, capsys):
    """Without a terminal a line now and then; on one a bar."""
    results.sweep("mixers")
    monkeypatch.setattr("mvar.runs.display.LINE_INTERVAL_S", 0.0)
    assert cli.main(["report", "--results", str(results.root)]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert all(re.fullmatch(r"\[ +\d+ s\] report: \d+% done(\| .+)?", line.replace(" |", "|")) for line in lines)
    assert lines[-1].endswith("100% done") and any(
        line.endswith("| Table 1: attention score and cost") for line in lines
    )
    assert said.out.startswith("report: ")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["report", "--results", str(results.root)]) == 0
    assert "writing the report" in terminal.getvalue()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_what_is_wrong_does_not_stop_the_rest(results, monkeypatch):
    _, configs = results.sweep("mixers")
    shutil.rmtree(results.store.run(configs[1].run_id).path)
    samples = results.store.run(configs[2].run_id).samples(configs[2].evaluation_id) / "samples.npz"
    samples.write_bytes(b"no archive")
    (results.store.run(configs[0].run_id).path / "attention.json").unlink()  # its weights are no weights either
    stage = results.store.stage("extractor", configs[0].extractor_id).path
    (stage / "floors.json").write_text("{")

    def broken(*arguments):
        raise RuntimeError("a bug in one figure")

    drawn = results.root / "report" / "figures" / "nll-by-scale-digits-steps.png"
    write_report(results.root)
    assert drawn.exists()
    monkeypatch.setattr(shipped.load(shipped.find("analysis", "likelihood")), "scale_figure", broken)
    text = write_report(results.root).read_text()
    problems = text.split("## Problems")[1]
    for told in ("samples.npz: cannot be read", "attention is not measured", "floors.json", "a bug in one figure"):
        assert told in problems, told
    assert f"| {configs[1].run_id} | not there | `mvar run mixers --preset digits` |" in text
    assert "| VAR | global | 1.60 | 3.55 |" in text and "| 1 (intra-only) | intra | — | 7.17 |" in text
    assert (results.root / "report" / "figures" / "samples-mixers-digits-steps.png").exists()
    assert (results.root / "report" / "figures" / "loss-digits-steps.png").exists()
    assert not drawn.exists() and not drawn.with_suffix(".pdf").exists()  # the earlier report's, no longer true


@pytest.mark.usefixtures("undrawn")
def test_a_refused_table_says_why_and_lists_the_groups(results):
    _, configs = results.sweep("mixers")
    record = results.evaluation(configs[0])
    record["evaluation"]["num_images"] = 100
    results.store.run(configs[0].run_id).add_evaluation(configs[0].evaluation_id, record)
    text = write_report(results.root).read_text()
    assert "**Not compared.** evaluations differ in evaluation.num_images" in text
    assert f"[evaluation.num_images = 100: {configs[0].run_id}]" in text
    assert not (results.root / "report" / "tables" / "mixers-digits-steps.csv").exists()
    assert "## Table 1" in text


# Sample grids -------------------------------------------------------------------------------------------------------


def test_samples_are_read_by_class(tmp_path):
    labels = np.arange(60) % 10
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images, labels=labels)
    grid = read_samples(tmp_path / "samples.npz")
    assert grid.shape == (10, 6, 4, 4, 3)
    assert grid[3, :, 0, 0, 0].tolist() == [3, 13, 23, 33, 43, 53]


def test_few_images_of_a_class_shorten_all_rows():
    chosen = first_of_each_class(np.array([1, 0, 0, 1, 0]))
    assert chosen.tolist() == [[1, 2], [0, 3]]


def test_tiles_lie_row_by_row():
    images = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1)
    assert tile(images)[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tile(images)[1, :, 0].tolist() == [255] * 5
