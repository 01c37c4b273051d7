"""Reading run directories: everything that can be wrong with one is a line, and the rest is read."""

import json
import shutil

import pytest

from mvar.analysis.compare import aggregate, check_comparable, ratio
from mvar.analysis.records import load_records, training_curve
from mvar.config import override
from mvar.errors import UserError
from mvar.presets import DIGITS, PRESETS
from mvar.runs.store import Store


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_one_row_a_run_and_evaluation(results):
    manifest, configs = results.sweep("mixers", seeds=(0, 1))
    records = load_records(results.root)
    assert records.problems == [] and records.missing == []
    assert sorted(records.table["run_id"]) == sorted(config.run_id for config in configs)
    row = records.table.set_index("run_id").loc[configs[1].run_id]
    assert (row["seed"], row["pattern"], row["depth"], row["state"]) == (1, "global", 8, "done")
    assert row["eval/fid"] == pytest.approx(1.7) and row["num_images"] == DIGITS.evaluation.num_images
    assert [cell.label for cell in records.manifests[0].cells] == [cell["label"] for cell in manifest["cells"]]


def test_a_second_evaluation_is_a_second_row(results):
    config = PRESETS["digits"]
    run = results.run(config)
    run.add_evaluation("other", results.evaluation(config, fid=5.0))
    table = load_records(results.root).table
    assert sorted(table["eval/fid"]) == [1.6, 5.0] and table["run_id"].nunique() == 1


@pytest.mark.parametrize("root", ["nowhere", "results"])
def test_no_runs_names_the_command_that_makes_some(tmp_path, root):
    (tmp_path / "results").mkdir()
    with pytest.raises(UserError, match=r"holds no readable run.*`mvar run mixers`"):
        load_records(tmp_path / root)


def test_missing_runs_are_listed_with_their_command(results):
    _, configs = results.sweep("mixers")
    shutil.rmtree(results.store.run(configs[2].run_id).path)
    records = load_records(results.root)
    (missing,) = records.missing
    assert (missing.run_id, missing.label) == (configs[2].run_id, "2 (Mamba-only)")
    assert missing.command == "mvar run mixers --preset digits" and missing.why == "not there"


def test_a_trained_run_without_its_evaluation_is_missing_too(results):
    _, configs = results.sweep("mixers")
    (results.store.run(configs[0].run_id).path / "eval.json").unlink()
    (missing,) = load_records(results.root).missing
    assert missing.run_id == configs[0].run_id and "evaluation" in missing.why


def test_half_a_run_is_a_problem_and_no_result(results):
    _, configs = results.sweep("mixers")
    results.store.run(configs[3].run_id).write_status("stopped", "train", step=120, steps=600)
    records = load_records(results.root)
    assert any(configs[3].run_id in p and "stopped in train, step 120 of 600" in p for p in records.problems)
    assert records.rows(records.manifests[0].cells[3]).empty
    assert [m.why for m in records.missing] == ["stopped"]


DAMAGE = {
    "corrupt config": ("config.json", lambda path: path.write_text('{"seed":'), "config.json: not valid JSON"),
    "no config": ("config.json", lambda path: path.unlink(), "has no config.json"),
    "another schema": (
        "config.json",
        lambda path: edit(path, lambda v: v.update(schema_version=2)),
        "schema_version is 2",
    ),
    "corrupt evaluation": ("eval.json", lambda path: path.write_text("{]"), "eval.json: not valid JSON"),
    "evaluation of another schema": (
        "eval.json",
        lambda path: edit(path, lambda v: v.update(schema_version=7)),
        "schema_version is 7",
    ),
    "evaluation of another shape": (
        "eval.json",
        lambda path: edit(path, lambda v: next(iter(v["evaluations"].values())).pop("metrics")),
        "KeyError: 'metrics'",
    ),
    "evaluations as a list": (
        "eval.json",
        lambda path: edit(path, lambda v: v.update(evaluations=[1])),
        "not as this version writes it",
    ),
    "corrupt status": ("status.json", lambda path: path.write_bytes(b"\xff\xfe"), "status.json"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line_and_the_rest_is_read(results, case):
    _, configs = results.sweep("mixers")
    name, damage, told = DAMAGE[case]
    damage(results.store.run(configs[0].run_id).path / name)
    records = load_records(results.root)
    lines = [p for p in records.problems if told in p]
    assert len(lines) == 1 and "\n" not in lines[0] and configs[0].run_id in lines[0]
    assert all(not records.rows(cell).empty for cell in records.manifests[0].cells[1:])
    derived = [] if case == "corrupt status" else [configs[0].run_id]  # weights and an evaluation are there
    assert [m.run_id for m in records.missing] == derived


def test_a_corrupt_manifest_is_one_line(results):
    results.sweep("mixers")
    (results.root / "sweeps" / "layers-digits-steps.json").write_text('{"schema_version": 1, "sweep": "layers"}')
    records = load_records(results.root)
    assert [m.sweep for m in records.manifests] == ["mixers"]
    assert [p for p in records.problems if "sweeps/layers-digits-steps.json" in p]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1.6", True])
def test_a_metric_that_is_no_number_becomes_a_dash(results, value):
    _, configs = results.sweep("mixers")
    path = results.store.run(configs[0].run_id).path / "eval.json"
    edit(path, lambda v: v["evaluations"][configs[0].evaluation_id]["metrics"].update({"eval/fid": value}))
    records = load_records(results.root)
    assert any("eval/fid is" in p and configs[0].run_id in p for p in records.problems)
    rows = records.rows(records.manifests[0].cells[0])
    assert aggregate(rows, "eval/fid") is None and aggregate(rows, "eval/recall").mean == 0.6


def test_training_curve_skips_what_it_cannot_read(results):
    run = results.run(PRESETS["digits"])
    whole = training_curve(run, "train/loss", problems := [])
    assert len(whole) == DIGITS.train.steps // DIGITS.runtime.log_every and problems == []
    lines = run.metrics.read_text().splitlines()
    run.metrics.write_text("\n".join([lines[0], '{"step": 20, "train/lo', '{"train/loss": 3.0}', "[1]", *lines[3:]]))
    partial = training_curve(run, "train/loss", problems)
    assert partial["step"].tolist() == [10, *range(40, DIGITS.train.steps + 1, 10)]
    assert [p.split("metrics.jsonl ")[1] for p in problems] == [
        "line 2: not valid JSON; skipped",
        "line 3: not a logged step; skipped",
        "line 4: not a logged step; skipped",
    ]


# Replicates and comparisons -----------------------------------------------------------------------------------------


def test_mean_and_deviation_are_over_training_seeds(results):
    results.sweep("mixers", seeds=(0, 1, 2))
    records = load_records(results.root)
    rows = records.rows(records.manifests[0].cells[0])
    measured = aggregate(rows, "eval/fid")
    assert measured.mean == pytest.approx(1.7) and measured.sd == pytest.approx(0.1) and measured.n == 3
    assert measured.text(2) == "1.70 ± 0.10"
    single = aggregate(rows[rows["seed"] == 0], "eval/fid")
    assert single.sd is None and single.text(2) == "1.60"
    assert aggregate(rows, "eval/no_such_metric") is None


def test_sampling_seeds_are_averaged_and_are_no_replicates(results):
    config = PRESETS["digits"]
    run = results.run(config)
    second = results.evaluation(config, fid=2.0)
    second["sample"]["seed"] = 1
    run.add_evaluation("second", second)
    table = load_records(results.root).table
    check_comparable(table)  # a sampling seed is no setting
    measured = aggregate(table, "eval/fid")
    assert (measured.mean, measured.sd, measured.n) == (pytest.approx(1.8), None, 1)


def test_ratios_are_paired_by_seed(results):
    results.sweep("parameters", seeds=(0, 1))
    records = load_records(results.root)
    cells = records.manifests[0].cells
    own, reference = records.rows(cells[0]).copy(), records.rows(cells[3]).copy()
    own["train_step_ms"] = [50.0 if seed == 0 else 90.0 for seed in own["seed"]]
    reference["train_step_ms"] = [100.0 if seed == 0 else 150.0 for seed in reference["seed"]]
    measured = ratio(own, reference, "train_step_ms")
    assert measured.mean == pytest.approx((0.5 + 0.6) / 2) and measured.n == 2
    assert ratio(own[own["seed"] == 0], reference[reference["seed"] == 1], "train_step_ms") is None


CHANGES = {
    "extractor_id": lambda record: record.update(extractor_id="other"),
    "evaluation.num_images": lambda record: record["evaluation"].update(num_images=100),
    "sample.cfg_scale": lambda record: record["sample"].update(cfg_scale=9.0),
    "reference.num_images": lambda record: record["reference"].update(num_images=10),
}


@pytest.mark.parametrize("name", CHANGES)
def test_evaluations_that_differ_are_not_compared(results, name):
    _, configs = results.sweep("mixers")
    path = results.store.run(configs[1].run_id).path / "eval.json"
    edit(path, lambda v: CHANGES[name](v["evaluations"][configs[1].evaluation_id]))
    table = load_records(results.root).table
    with pytest.raises(UserError) as error:
        check_comparable(table)
    text = str(error.value)
    assert f"evaluations differ in {name} " in text and text.count("[") == 2
    assert all(config.run_id in text for config in configs)


def test_the_benchmarks_directories_are_runs_like_any(results, tmp_path):
    from benchmarks.report import multiply

    results.sweep("mixers", seeds=(0, 1))
    before = {path: path.stat().st_mtime_ns for path in results.root.rglob("*") if path.is_file()}
    store = Store(tmp_path / "many")
    assert multiply(results.store, store, 30) == 30
    records = load_records(store.root)
    assert records.problems == [] and records.missing == [] and len(records.table) == 30
    assert sum(len(cell.run_ids) for cell in records.manifests[0].cells) == 30
    assert records.table["eval/fid"].nunique() > 8  # shifted, not merely copied
    assert {path: path.stat().st_mtime_ns for path in results.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("reading", [1, 2])
def test_a_row_says_whether_images_in_both_sets_were_counted(results, reading):
    """Where there are any: the next run has none."""
    folder = {"data.name": "imagefolder", "data.root": "/pictures", "data.reading": reading}
    for number in (3, 0):
        config = override(DIGITS, {**folder, "seed": number})
        results.run(config)
        path = results.store.run(config.run_id).path / "eval.json"
        values = json.loads(path.read_text())
        values["evaluations"][config.evaluation_id]["metrics"] |= {"eval/heldout_in_training": number} if number else {}
        path.write_text(json.dumps(values))
    table = load_records(results.root).table.set_index("seed")
    assert ("first_reading" in table) == (reading == 1)
    assert reading == 2 or table["first_reading"].eq(True).to_dict() == {3: True, 0: False}
