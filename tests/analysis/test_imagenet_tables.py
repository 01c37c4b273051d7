"""Tables 2, 3 and 4: all that is printed, ours where runs are, and what is counted from the published sizes."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from mvar import shipped
from mvar.analysis.background import extractor_lines
from mvar.analysis.records import load_records
from mvar.analysis.render import to_markdown
from mvar.analysis.reproduced import OF_EVALUATION, beside_printed, published_settings
from mvar.analysis.tables import PAPERS_REFERENCE
from mvar.config import override
from mvar.presets import PRESETS

ROOT = Path(__file__).parents[2]
PAPER = shipped.folder("experiments") / "paper"
SCRIPT = shipped.load(shipped.find("analysis", "imagenet"))
ARTEFACTS, imagenet_table, figure2 = SCRIPT.ARTEFACTS, SCRIPT.imagenet_table, SCRIPT.figure2

TABLE2, TABLE3, TABLE4 = ARTEFACTS
D16 = PRESETS["imagenet256-d16"]


def by_label(table):
    return {row["label"]: row for row in table.rows}


@pytest.mark.parametrize("which", ARTEFACTS, ids=lambda which: which.name)
def test_every_printed_row_is_there_with_dashes_for_ours(results, which):
    results.run(PRESETS["digits"])  # other data: never in these tables
    table, refused = imagenet_table(load_records(results.root), which)
    with (PAPER / f"{which.csv}.csv").open(newline="") as file:
        printed = list(csv.DictReader(file))
    assert [row["label"] for row in table.rows] == [row["model"] for row in printed]
    assert [f"{row['paper_fid']:.2f}" for row in table.rows] == [row["fid"] for row in printed]
    assert [row["paper_is"] for row in table.rows] == [row["is"] for row in printed]
    assert refused is None and all(row.get("fid") is None for row in table.rows) and not any(table.run_ids)
    assert "No run of ours is there" in " ".join(table.reading)


def test_what_is_missing_names_the_command():
    table, _ = imagenet_table(load_records("nowhere", allow_empty=True), TABLE2)
    command = "Command: `mvar run mixers --preset imagenet256"
    assert f"Missing here: VAR-d16, M-VAR-d16. {command}-d16-online`" in table.missing
    assert f"Missing here: M-VAR-d32. No recipe is printed for it. {command}-d32-online`" in table.missing
    table, _ = imagenet_table(load_records("nowhere", allow_empty=True), TABLE3)
    assert "Missing here: VAR-d30. Command: `mvar run rejection --preset imagenet256-d30-online`" in table.missing


def test_every_printed_model_of_ours_has_a_preset():
    for which in ARTEFACTS:
        table, _ = imagenet_table(load_records("nowhere", allow_empty=True), which)
        told = " ".join(table.missing)
        assert set(re.findall(r"--preset ([\w-]+)", told)) <= set(PRESETS)
        ours = [row["label"] for row in table.rows if re.match(r"(M-)?VAR-d", row["label"])]
        assert len(ours) >= 2 and all(re.search(rf"(?<![\w-]){label}[,.]", told) for label in ours)


def test_sizes_and_times_are_counted_without_runs():
    rows = by_label(imagenet_table(load_records("nowhere", allow_empty=True), TABLE2)[0])
    assert rows["M-VAR-d16"]["num_params"] == pytest.approx(464.2e6, rel=1e-3)
    assert (
        rows["M-VAR-d32"]["num_params"] == pytest.approx(3659e6, rel=1e-3) and rows["BigGAN"].get("num_params") is None
    )
    assert (
        rows["M-VAR-d32"]["time_analytic"] == 1
        and rows["VAR-d16"]["time_analytic"] < rows["M-VAR-d16"]["time_analytic"]
    )


def test_contradictions_stand_on_their_cells():
    records = load_records("nowhere", allow_empty=True)
    marked = {}
    for which in ARTEFACTS:
        table, _ = imagenet_table(records, which)
        assert to_markdown(table, str)
        for note in table.notes:
            marked[which.name, table.rows[note.row]["label"], note.column] = note.text
            assert note.column in {column.key for column in table.columns}
    assert set(marked) == {
        ("table2", "M-VAR-d32", "paper_params"),
        ("table2", "M-VAR-d24", "paper_relative_time"),
        ("table2", "M-VAR-d16", "paper_params"),
        ("table3", "M-VAR-d32", "paper_fid"),
        ("table3", "M-VAR-d32", "paper_params"),
        ("table4", "BigGAN", "paper_fid"),
    }


@pytest.mark.slow
def test_runs_of_the_published_recipe_stand_on_the_printed_row(results, tmp_path):
    results.sweep("mixers", seeds=(0, 1), preset="imagenet256-d16")
    table, refused = imagenet_table(load_records(results.root), TABLE2)
    rows = by_label(table)
    assert refused is None
    assert rows["VAR-d16"]["fid"].text(2) == "1.65 ± 0.07" and rows["VAR-d16"]["paper_fid"] == 3.55
    assert rows["M-VAR-d16"]["n"] == 2 and len(table.run_ids[list(rows).index("M-VAR-d16")]) == 2
    assert len(rows) == 28  # intra and mamba alone are no models of this table
    assert not any("d16" in line for line in table.missing)
    (ours,) = [line for line in table.reading if "held-out images of" in line]
    settings = json.loads(next(iter(load_records(results.root).done["settings"])))
    assert f"against {settings['reference.num_images']:,} held-out images" in ours
    assert "VAR's printed FID and IS: 50,000 images against the reference statistics that ADM has of ImageNet" in ours
    assert figure2(table, tmp_path).caption.endswith("Filled: measured here.")


def test_a_row_that_reproduces_a_printed_one_says_how_far_off_it_is_and_what_differs(results):
    results.sweep("mixers", preset="imagenet256-d16")
    line = reproduced_line(results, "VAR-d16")
    assert line.startswith("**VAR-d16**: FID 1.600, printed 3.55 (-1.95); IS ")
    assert line.endswith(
        "Other settings than the published ones: reference.file `held-out images` (published: "
        "`VIRTUAL_imagenet256_labeled.npz`). Weights: published recipe."
    )
    told = reproduced_line(results, "M-VAR-d16")
    same = "All 4 settings that are published are the same. Not published: "
    assert f"{same}evaluation.num_images, evaluation.extractor, reference.file." in told
    assert told[told.index(same) :].split(" Weights: ")[0] in (ROOT / "docs/imagenet.md").read_text()
    assert line[line.index("Other settings") :].split(" Weights: ")[0] in (ROOT / "docs/imagenet.md").read_text()


def test_what_stands_under_the_tables_is_said_of_those_alone_that_publish_it():
    """The line on the printed numbers' evaluation, and the settings of the rows that are said beside them."""
    of_var, of_mvar = PAPERS_REFERENCE.split(" M-VAR's: ")
    for table in ("Table 2", "Table 4"):
        settings = published_settings(table, "VAR-d36")
        assert f"VAR's printed FID and IS: {int(settings['evaluation.num_images']):,} images" in of_var
        assert settings["evaluation.extractor"] in of_var.lower() and "VIRTUAL" in settings["reference.file"]
        assert of_mvar == "none of the three is published."
        assert not set(OF_EVALUATION) & published_settings(table, "M-VAR-d24").keys()


def reproduced_line(results, model):
    table, _ = imagenet_table(load_records(results.root), TABLE2)
    (line,) = [line for line in table.reading if line.startswith(f"**{model}**")]
    return line


def test_the_published_settings_are_those_of_the_preset():
    settings = published_settings("Table 2", "VAR-d16")
    wanted = {name: value for name, value in settings.items() if name != "reference.file"}
    assert override(D16, wanted) == D16 and len(wanted) == 6
    assert published_settings("Table 4", "VAR-d36")["reference.file"] == "VIRTUAL_imagenet512.npz"
    assert published_settings("Table 2", "BigGAN") == {}


def test_another_guidance_is_told(results):
    config = override(D16, {"sample.cfg_scale": 2.0})
    results.run(config)
    assert "sample.cfg_scale `2` (published: `1.5`)" in reproduced_line(results, "VAR-d16")


def test_fresh_crops_stand_on_the_printed_row_wherever_the_images_lie(results):
    """Cached crops then have a row of their own; pictures that are prepared otherwise are no published training."""
    flat = {"data.name": "ilsvrc", "data.ilsvrc.devkit": "kit"}
    results.run(cached := override(D16, flat))
    results.run(fresh := override(PRESETS["imagenet256-d16-online"], flat))
    table, _ = imagenet_table(load_records(results.root), TABLE2)
    ids = dict(zip((row["label"] for row in table.rows), table.run_ids, strict=True))
    assert ids["VAR-d16"] == [fresh.run_id] and ids["VAR-d16, published recipe on cached crops"] == [cached.run_id]
    assert not SCRIPT.is_training_of(override(fresh, {"data.hflip": True}), D16)


def test_another_recipe_is_a_row_of_its_own(results):
    results.run(override(D16, {"train.steps": 1000}))
    table, _ = imagenet_table(load_records(results.root), TABLE2)
    rows = by_label(table)
    assert rows["VAR-d16"].get("fid") is None and "paper_fid" not in rows["VAR-d16, 1,000 steps"]
    assert rows["VAR-d16, 1,000 steps"]["fid"].mean == 1.6
    assert any("VAR-d16, M-VAR-d16. Command" in line for line in table.missing)


def test_published_weights_stand_under_the_printed_row(results):
    results.run(override(D16, {"train.steps": 0, "train.init_from": "$VAR_D16", "model.attn_l2_norm": True}))
    table, _ = imagenet_table(load_records(results.root), TABLE2)
    labels = [row["label"] for row in table.rows]
    number = labels.index("VAR-d16, published weights")
    assert labels[number - 1] == "VAR-d16" and table.rows[number]["fid"].mean == 1.6 and table.run_ids[number]
    assert "mvar evaluate --checkpoint" in table.missing[-1]


def test_rejection_goes_to_table_3_with_its_rate(results):
    config = override(PRESETS["imagenet256-d30"], {"sample.candidates": 5})
    results.run(config)
    records = load_records(results.root)
    rows = by_label(imagenet_table(records, TABLE3)[0])
    assert rows["VAR-d30"]["acceptance_rate"] == pytest.approx(0.2) and rows["VAR-d30"]["fid"].mean == 1.6
    assert by_label(imagenet_table(records, TABLE2)[0])["VAR-d30"].get("fid") is None


def test_of_inceptions_features_alone_nothing_is_said_against_published_numbers(results):
    results.run(D16)
    (line,) = extractor_lines(load_records(results.root), problems := [])
    assert ": inception, " in line and line.endswith("FID of another extractor is another number.") and not problems
    results.run(PRESETS["digits"])
    lines = extractor_lines(load_records(results.root), [])
    assert sorted("none of these compares with an ImageNet FID" in line for line in lines) == [False, True]


def against_a_file(results, config, path, sha256="a" * 64):
    """What a finished run's evaluation against a file of reference writes."""
    asked = override(config, {"evaluation.reference": path})
    reference = {"file": Path(path).name, "sha256": sha256, "num_images": 10_000}
    record = {**results.evaluation(asked), "reference": reference}
    run = results.store.run(config.run_id)
    (run.path / "eval.json").unlink()
    run.add_evaluation(asked.evaluation_id, record)


def test_a_file_of_reference_is_known_by_its_digest_wherever_it_lies(results):
    """Two paths and two names of one file compare, and the line under the table has both; another file does not."""
    _, configs = results.sweep("mixers", preset="imagenet256-d16")
    for number, config in enumerate(configs):
        name = ("VIRTUAL_imagenet256_labeled.npz", "again.npz")[number % 2]
        against_a_file(results, config, f"/data/{number}/{name}")
    table, refused = imagenet_table(load_records(results.root), TABLE2)
    assert refused is None and by_label(table)["VAR-d16"]["fid"].mean == 1.6
    (line,) = [line for line in table.reading if line.startswith("All metrics of")]
    statistics = "VIRTUAL_imagenet256_labeled.npz, again.npz (sha256 aaaaaaaaaaaa)"
    assert f"FID and sFID are against the statistics of {statistics}, KID, precision and recall against its " in line
    assert "its 10,000 images, near-copies against held-out ones." in line
    assert "All 7 settings that are published are the same. Weights: " in reproduced_line(results, "VAR-d16")
    against_a_file(results, configs[0], "/data/1/again.npz", "b" * 64)
    assert "evaluations differ in reference.sha256 and" in imagenet_table(load_records(results.root), TABLE2)[1]


def test_512_px_and_relative_time(results):
    results.sweep("mixers", preset="imagenet512-d24")
    results.run(PRESETS["imagenet512-d36"])
    rows = by_label(imagenet_table(load_records(results.root), TABLE4)[0])
    assert rows["M-VAR-d24"]["time"].mean == 1 and rows["VAR-d36"]["time"].mean == pytest.approx(0.5)
    assert rows["VAR-d36"]["time_analytic"] > 1


def test_mixed_evaluators_leave_the_printed_table_and_say_why(results):
    _, configs = results.sweep("mixers", preset="imagenet256-d16")
    run = results.store.run(configs[0].run_id)
    values = json.loads((run.path / "eval.json").read_text())
    values["evaluations"][configs[0].evaluation_id]["reference"]["num_images"] = 10
    (run.path / "eval.json").write_text(json.dumps(values))
    table, refused = imagenet_table(load_records(results.root), TABLE2)
    assert "evaluations differ in reference.num_images" in refused
    assert len(table.rows) == 28 and all(row.get("fid") is None for row in table.rows)
    assert any(line.startswith("**Not compared.**") for line in table.reading)
    shutil.rmtree(run.path)
    assert imagenet_table(load_records(results.root), TABLE2)[1] is None


def test_what_differs_from_the_published_code_is_no_setting_of_ours_alone():
    """A setting that the published rows do not name has there its default: ours is recorded where it has not."""
    same = {"sample.cfg_scale": 1.5, "sample.top_k": 900, "sample.top_p": 0.96, "sample.more_smooth": False}
    for other in ({"sample.guidance": "constant"}, {"sample.filter": "min_p"}, {"sample.ema": 100}):
        told = beside_printed("Table 2", "M-VAR-d16", {}, {}, same | other)
        (name,) = other
        assert f"Other settings than the published ones: {name} " in told and "are the same" not in told
    assert "All 4 settings" in beside_printed("Table 2", "M-VAR-d16", {}, {}, same)
