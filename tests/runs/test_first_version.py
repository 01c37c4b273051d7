"""Results of the first version, for ever: found done, gone on with to the same bytes, evaluated anew, reported."""

import os
import re
import shutil
from pathlib import Path

import first_version as first
import pytest
from test_identity import SECTIONS, added

from mvar.analysis.compare import check_comparable
from mvar.analysis.records import load_records
from mvar.cli import main
from mvar.config import RunConfig, override
from mvar.errors import FAILURE, OK, USER_ERROR
from mvar.files import file_digest, read_json, write_json
from mvar.presets import PRESETS
from mvar.runs.environment import describe
from mvar.runs.experiment import find_experiment
from mvar.runs.pipeline import execute
from mvar.runs.request import Request, write_manifest
from mvar.runs.states import DONE, STOPPED
from mvar.runs.store import Store

LATER = {"eval/kid_se"}  # metrics that came after that version
SMOKE = override(PRESETS["smoke"], dict(setting.split("=") for setting in first.SETTINGS))


@pytest.fixture
def store(tmp_path) -> Store:
    return first.unpack(tmp_path / "results")


@pytest.fixture(scope="module")
def gone_on_with(tmp_path_factory) -> Store:
    """What this version makes of it."""
    store = first.unpack(tmp_path_factory.mktemp("first") / "results")
    assert main(first.command(store.root)) == OK
    return store


def made_here(store: Store) -> bool:
    """Whether this processor and this torch are those that the expected bytes were made with."""
    was, now = read_json(store.run(first.SPLIT).path / "env.json"), describe({})
    return was["cpu"] == now["cpu"] and was["versions"]["torch"] == now["versions"]["torch"]


def test_ids_are_those_of_the_first_version(store):
    for name in (first.FINISHED, first.SPLIT, first.IN_TRAINING, first.IN_SAMPLING):
        config = store.run(name).config()
        assert config.run_id == name and store.run_of(config).name == name
        assert store.has_tokenizer(config)
    assert store.run(first.SPLIT).config().runtime.accumulate == 2  # how it was made, and goes on


def kept(path):
    """When files of a run were written, and its numbers: a metric that came later is added to them, beside them."""
    added = ("eval.json", ".lock")
    times = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.name not in added and p != path}
    records = read_json(path / "eval.json")["evaluations"]
    return times, {key: {n: v for n, v in one["metrics"].items() if n not in LATER} for key, one in records.items()}


def test_done_is_done_and_the_rest_ends_in_the_same_bytes(gone_on_with):
    assert all(run.state() == DONE for run in gone_on_with.runs()) and len(gone_on_with.runs()) == 5
    kept = [name for name in first.EXPECTED["sha256"] if first.FINISHED in name or first.SPLIT in name]
    kept += [name for name in first.EXPECTED["sha256"] if name.startswith("stages/")]
    found = {name: file_digest(gone_on_with.root / name) for name in first.EXPECTED["sha256"]}
    assert all(found[name] == first.EXPECTED["sha256"][name] for name in kept)  # nothing of it was made again
    for name, evaluations in first.EXPECTED["metrics"].items():
        metrics = gone_on_with.run(name).evaluations()
        for evaluation_id, expected in evaluations.items():
            exactly = made_here(gone_on_with) or name in (first.FINISHED, first.SPLIT)
            here = metrics[evaluation_id]["metrics"]
            here = {key: value for key, value in here.items() if key not in LATER}
            assert here == expected if exactly else here == pytest.approx(expected, rel=0.2)
    if made_here(gone_on_with):
        assert found == first.EXPECTED["sha256"]


def test_asked_for_in_any_words_it_is_done(gone_on_with, capsys):
    before = {path: path.stat().st_mtime_ns for path in gone_on_with.root.rglob("*") if path.is_file()}
    for more in ([], ["train.accumulate=2"], ["runtime.accumulate=4", "train.steps=20.0"], ["cfg_scale=1.5"]):
        assert main([*first.command(gone_on_with.root), *more]) == OK
        assert "4 of 4 runs done" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in gone_on_with.root.rglob("*") if path.is_file()}
    changed = {str(path.relative_to(gone_on_with.root)) for path, time in after.items() if before.get(path) != time}
    assert changed <= {f"sweeps/{first.MANIFEST}.json", "sweeps/.lock"}
    assert len(list(gone_on_with.root.glob("sweeps/*.json"))) == 1


@pytest.mark.slow
def test_it_is_sampled_evaluated_anew_and_reported(gone_on_with, tmp_path, capsys):
    store = Store(shutil.copytree(gone_on_with.root, tmp_path / "results"))
    place = ["--results", str(store.root)]
    for name in (first.FINISHED, first.SPLIT):
        weights = store.run(name).weights.read_bytes()
        assert main(["evaluate", name, *place, "--set", "cfg_scale=3", "evaluation.num_images=40"]) == OK
        assert len(store.run(name).evaluations()) == 2 and store.run(name).weights.read_bytes() == weights
    assert main(["sample", first.IN_SAMPLING, *place, "--per-class", "1", "--out", str(tmp_path / "grid.png")]) == OK
    assert main(["status", *place]) == OK
    assert main(["report", *place]) == OK
    capsys.readouterr()
    report = (store.root / "report/report.md").read_text()
    assert "## Problems" not in report and "## Missing" not in report
    assert "**Made by**: trained on cpu, 1 process, attention torch, scan torch; drawn on cpu" in report
    assert len(list(store.root.glob("stages/*"))) == 3


def test_the_split_run_answers_for_the_plain_one(store):
    """Where only the run with `train.accumulate=2` is there, it is the run that is asked for."""
    shutil.rmtree(store.run(first.FINISHED).path)
    config = override(SMOKE, {"model.pattern": "global"})
    assert store.run_of(config).name == first.SPLIT and store.is_done(store.as_stored(config))
    before = kept(store.run(first.SPLIT).path)
    assert execute(config, store) == DONE
    assert before == kept(store.run(first.SPLIT).path)
    assert not store.run(first.FINISHED).path.exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_renamed_run_is_still_that_run(store, capsys):
    moved = store.run(first.FINISHED).path.rename(store.root / "runs" / "my favourite")
    for run in (first.SPLIT, first.IN_SAMPLING, first.IN_TRAINING):
        shutil.rmtree(store.run(run).path)
    before = kept(moved)
    config = override(SMOKE, {"model.pattern": "global"})
    assert store.is_done(config) and execute(config, store) == DONE
    assert before == kept(moved)
    place = ["--results", str(store.root)]
    assert main(["evaluate", first.FINISHED, *place, "--set", "sample.seed=4", "evaluation.num_images=40"]) == OK
    assert len(store.run("my favourite").evaluations()) == 2 and len(store.runs()) == 1
    assert main(["report", *place]) == OK and main(["status", *place]) == OK
    assert "my favourite" in capsys.readouterr().out
    rows = (store.root / f"report/tables/{first.MANIFEST}.csv").read_text().splitlines()
    row = next(line for line in rows if line.startswith("VAR"))
    assert "my favourite" in row


def test_of_two_directories_the_finished_one_counts_and_a_line_says_so(store, capsys):
    run = store.run(first.FINISHED)
    shutil.copytree(run.path, store.root / "runs" / "a copy")
    (store.root / "runs" / "a copy" / "status.json").unlink()
    run.path.rename(store.root / "runs" / "the original")
    shutil.rmtree(store.run(first.SPLIT).path)
    assert store.run_of(override(SMOKE, {"model.pattern": "global"})).name == "the original"
    (line,) = capsys.readouterr().err.splitlines()
    assert "the original" in line and "a copy" in line and "the original is used" in line


def test_of_two_finished_directories_the_oldest_counts(store, capsys):
    run = store.run(first.FINISHED)
    shutil.copytree(run.path, store.root / "runs" / "the younger")
    os.utime(store.root / "runs" / "the younger" / "tokenizer.json", (2_000_000_000, 2_000_000_000))
    run.path.rename(store.root / "runs" / "the older")
    shutil.rmtree(store.run(first.SPLIT).path)
    assert store.run_of(override(SMOKE, {"model.pattern": "global"})).name == "the older"
    assert capsys.readouterr().err.count("\n") == 1


def test_an_evaluation_is_found_in_every_spelling(store):
    """Of a run that is there, and of one that has yet to be made."""
    config = override(SMOKE, {"model.pattern": "global", "evaluation.inception_weights": "/a/b"})
    run = store.run_of(config)
    record = {"evaluation": config.evaluation.model_dump(mode="json"), "metrics": {}}
    run.add_evaluation(config.evaluation_id, record)
    for path in ("/a//b", "/a/x/../b"):
        other = override(config, {"evaluation.inception_weights": path})
        assert other.evaluation_id != config.evaluation_id
        assert store.as_stored(other).evaluation_id == config.evaluation_id and store.is_done(store.as_stored(other))
    another = store.as_stored(override(config, {"evaluation.inception_weights": "/c"}))
    assert another.evaluation_id not in run.evaluations()


def test_another_run_under_a_runs_name_does_not_hide_it(store):
    run = store.run(first.FINISHED)
    shutil.rmtree(store.run(first.SPLIT).path)
    run.path.rename(store.root / "runs" / "moved")
    shutil.copytree(store.run(first.IN_SAMPLING).path, run.path)
    config = override(SMOKE, {"model.pattern": "global"})
    assert store.run_of(config).name == "moved" and store.is_done(config)


def test_a_report_and_status_find_a_run_that_was_asked_for_under_another_id(store, capsys):
    request = Request(find_experiment("mixers"), "smoke", SMOKE, (0,), dict(s.split("=") for s in first.SETTINGS))
    write_manifest(store, request, [])
    shutil.rmtree(store.run(first.FINISHED).path)
    records = load_records(store.root)
    assert list(records.rows(records.manifests[0].cells[0])["run_id"]) == [first.SPLIT]
    assert first.FINISHED not in {missing.run_id for missing in records.missing}
    assert main(["status", "--results", str(store.root)]) == OK
    assert first.FINISHED not in capsys.readouterr().out


def test_a_flipped_bit_is_found_by_repair(store, capsys):
    """Of artefacts with a record; those of the first version have none, and count as unchecked."""
    place = ["--results", str(store.root)]
    assert main(["repair", "--check", *place]) == OK
    assert execute(store.run(first.IN_TRAINING).config(), store) == DONE
    assert main(["repair", "--check", *place]) == OK
    weights = store.run(first.IN_TRAINING).weights
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert main(["repair", "--check", *place]) == FAILURE
    assert str(weights) in capsys.readouterr().out
    assert main(["repair", *place]) == OK  # documents are well


@pytest.mark.slow
def test_a_command_on_a_directory_uses_the_results_that_it_lies_in(store, tmp_path, monkeypatch):
    """From anywhere, without --results; nothing is made where the command is called."""
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    run, stages = store.run(first.FINISHED), sorted(store.root.glob("stages/*"))
    assert main(["sample", str(run.path), "--per-class", "1", "--out", "grid.png"]) == OK
    assert main(["export", str(run.path), "--out", "out.safetensors"]) == OK
    assert main(["attention", str(run.path), "--images", "4", "--out", "attention"]) == OK
    assert main(["evaluate", str(run.path), "--set", "sample.seed=4", "evaluation.num_images=40"]) == OK
    assert len(run.evaluations()) == 2 and sorted(store.root.glob("stages/*")) == stages
    assert not (here / "results").exists()


def test_a_directory_without_its_results_is_not_trained_anew(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    alone = shutil.copytree(store.run(first.FINISHED).path, tmp_path / "alone")
    for command in (["evaluate", str(alone), "--set", "sample.seed=4"], ["sample", str(alone), "--out", "grid.png"]):
        assert main([*command, "--results", str(tmp_path / "none")]) != OK
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mvar: error: ") and "tokenizer" in line
    assert not list(tmp_path.glob("none/stages/*")) and not (tmp_path / "grid.png").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_damaged_record_and_a_damaged_stage_are_told(store, capsys):
    place = ["--results", str(store.root)]
    assert execute(store.run(first.IN_TRAINING).config(), store) == DONE
    record = store.run(first.IN_TRAINING).path / "digests.json"
    record.write_text("[1]")
    status = next(store.root.glob("stages/tokens-*/status.json"))
    whole = status.read_text()
    status.write_text(whole[:20])
    assert main(["report", *place]) == OK
    report = (store.root / "report/report.md").read_text()
    assert status.parent.name in report.partition("## Problems")[2]
    status.write_text(whole)
    assert main(["repair", *place]) == FAILURE and str(record) in capsys.readouterr().out and record.exists()
    assert main(["repair", "--yes", *place]) == OK and not record.exists()


def test_a_config_of_another_model_than_the_weights_is_one_line(store, tmp_path, capsys):
    run = store.run(first.FINISHED)
    values = read_json(run.config_path)
    values["model"]["depth"] = 2
    write_json(run.config_path, values)
    assert main(["sample", str(run.path), "--out", str(tmp_path / "grid.png")]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run.config_path}: is of another model than {run.weights}" in line


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_folder_in_place_of_a_document_stops_nobody_else(store, capsys):
    path = store.run(first.SPLIT).path / "eval.json"
    path.unlink()
    path.mkdir()
    assert main(["status", "--results", str(store.root)]) in (OK, FAILURE)
    assert main(["report", "--results", str(store.root)]) == OK
    out, err = capsys.readouterr()
    assert first.FINISHED in out and str(path) in out + err and "Traceback" not in err
    assert main(first.command(store.root, "--dry-run")) == OK


def test_a_settled_mamba_does_not_retrain_a_model_without_one(store):
    before = kept(store.run(first.FINISHED).path)
    config = override(SMOKE, {"model.pattern": "global", "model.mamba.d_state": 8})
    assert config.run_id != first.FINISHED and store.run_of(config).name == first.FINISHED
    assert execute(config, store) == DONE
    assert before == kept(store.run(first.FINISHED).path)
    with_mamba = override(SMOKE, {"model.pattern": "mamba", "model.mamba.d_state": 8})
    assert store.run_of(with_mamba).name not in (first.IN_SAMPLING, first.FINISHED)


@pytest.mark.parametrize("where", SECTIONS)
def test_a_field_that_is_added_later_changes_nothing_of_what_is_there(store, where):
    """Finished stays done; stopped goes on to the same bytes; old and new rows compare; nothing is made again."""
    before = kept(store.run(first.FINISHED).path)
    trained: list[int] = []
    with added(SECTIONS[where], "later", int, 3):
        config = store.run(first.FINISHED).config()
        assert config.run_id == first.FINISHED and store.is_done(config) and execute(config, store) == DONE
        assert before == kept(store.run(first.FINISHED).path)
        begun = store.run(first.IN_TRAINING).config()
        assert execute(begun, store, lambda stage, done, _: trained.append(done) if stage == "train" else None) == DONE
        assert trained == list(range(11, 21))
        assert execute(override(config, {"sample.cfg_scale": 3.0, "evaluation.num_images": 40}), store) == DONE
        records = load_records(store.root)
        first_two = records.done[records.done["evaluation_id"] == config.evaluation_id]
        assert {first.FINISHED, first.IN_TRAINING} <= set(first_two["run_id"])
        check_comparable(first_two)
    if made_here(store):
        weights = f"runs/{first.IN_TRAINING}/model.safetensors"
        assert file_digest(store.root / weights) == first.EXPECTED["sha256"][weights]
    assert len(list(store.root.glob("stages/*"))) == 3 and len(store.runs()) == 4


def stop_at(step: int):
    """Progress and should_stop of a call that ends in training."""
    reached: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "train" and done >= step:
            reached.append(done)

    return progress, lambda: bool(reached)


def test_two_processes_then_one_are_one_run(store):
    """How many share a step is execution: the run that two micro-batches began ends as the one that is asked for."""
    config = override(SMOKE, {"model.pattern": "intra+mamba", "runtime.accumulate": 2})
    assert execute(config, store, *stop_at(10)) == STOPPED
    whole = override(config, {"runtime.accumulate": 1})
    assert whole.run_id == first.NOT_BEGUN and execute(whole, store) == DONE
    weights = file_digest(store.run(first.NOT_BEGUN).weights)
    assert len(weights) == 64 and len([r for r in store.runs() if "intra+mamba" in r.name]) == 1


NEWER = ("train", "data", "model.mamba", "tokenizer.train", "sample", "", "evaluation")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_fields_of_a_newer_version(store, capsys, tmp_path):
    """Shown, reported, sampled, evaluated with one warning; what is unfinished is not gone on with, others are."""
    for where in NEWER:
        for name in (first.FINISHED, first.IN_TRAINING):
            add_unknown(store.run(name).config_path, where)
    place = ["--results", str(store.root)]
    for command in (
        ["evaluate", first.FINISHED, *place, "--set", "evaluation.num_images=40"],
        ["sample", first.FINISHED, *place, "--per-class", "1", "--out", str(tmp_path / "grid.png")],
        ["status", *place],
    ):
        assert main(command) == OK
        said = [line for line in capsys.readouterr().err.splitlines() if "newer version" in line]
        assert len(said) == (0 if command[0] == "status" else 1)
        assert all(newer(where) in re.split("[ ,]", line) for line in said for where in NEWER)
    assert main(["report", *place]) == OK
    capsys.readouterr()
    assert "newer" in store.run(first.FINISHED).config_path.read_text()  # nothing of it is lost
    code = main(first.command(store.root))
    told = capsys.readouterr()
    assert code != OK and "of a newer version, which this one cannot go on with" in told.err
    assert "2 of 4 runs done" in told.out or "3 of 4 runs done" in told.out
    assert store.run(first.IN_TRAINING).config_path.read_text().count("newer") == len(NEWER)


@pytest.mark.slow
@pytest.mark.parametrize("where", NEWER)
def test_any_field_of_a_newer_version_is_told_and_not_gone_on_with(store, capsys, where):
    for name in (first.FINISHED, first.IN_TRAINING):
        add_unknown(store.run(name).config_path, where)
    assert store.run(first.FINISHED).config().run_id == first.FINISHED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"written by a newer version; {newer(where)} is not known here" in line
    words = first.command(store.root, "--cluster", "inprocess", "--only", "1 (intra-only)")
    assert main(["submit", *(word for word in words[1:] if word not in ("--workers", "1"))]) != OK
    assert f"{newer(where)} is of a newer version, which this one cannot go on with" in capsys.readouterr().err
    assert store.run(first.IN_TRAINING).config_path.read_text().count("newer") == 1


def newer(where: str) -> str:
    """The dotted name of what `add_unknown` adds."""
    return f"{where}.newer".removeprefix(".")


def add_unknown(path: Path, where: str) -> None:
    """Add a field that this version does not know to a section of a stored config."""
    values = read_json(path)
    node = values
    for part in filter(None, where.split(".")):
        node = node[part]
    node["newer"] = 3
    write_json(path, values)


def test_config_without_what_the_first_version_had_is_damaged(store, capsys):
    write_json(store.run(first.FINISHED).config_path, {"schema_version": 1})
    assert main(["evaluate", first.FINISHED, "--results", str(store.root)]) != OK
    line = capsys.readouterr().err
    assert "config.json" in line and "is not there; allowed: a whole config" in line
    assert RunConfig().run_id not in [run.name for run in store.runs()]
