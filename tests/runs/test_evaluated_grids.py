"""`mvar evaluate` with the words of `mvar run`: what is trained is sampled and measured, and nothing is trained."""

import json

import pytest
from tiny_runs import CONFIG, TINY

from mvar.cli import main
from mvar.config import override
from mvar.errors import FAILURE, OK, USER_ERROR, UserError
from mvar.runs.executors.contract import Summary
from mvar.runs.pipeline import execute

FEW = [f"{name}={value}" for name, value in TINY.items()]
SCALES = ["--grid", "sample.cfg_scale=0,3", "--name", "scales"]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    def run_all(configs, store, workers=None, directory=None):
        for config in configs:
            execute(config, store, directory=directory)
        return Summary(num_runs=len(configs), num_done=len(configs))

    monkeypatch.setattr("mvar.runs.runner.run_all", run_all)


@pytest.fixture
def evaluate(store):
    return lambda *words: main(["evaluate", *words, "--results", str(store.root)])


def run_of(store):
    return store.run(CONFIG.run_id)


def scales_of(store):
    return sorted(record["sample"]["cfg_scale"] for record in run_of(store).evaluations().values())


def test_a_grid_of_settings_of_one_trained_run_is_a_table(store, evaluate, capsys):
    before = run_of(store).weights.stat().st_mtime_ns
    assert evaluate("--config", str(run_of(store).path), *SCALES) == OK
    assert scales_of(store) == [0, CONFIG.sample.cfg_scale, 3]
    assert run_of(store).weights.stat().st_mtime_ns == before and len(store.runs()) == 1
    out = capsys.readouterr().out
    assert "cfg_scale=0" in out and "cfg_scale=3" in out and "fid" in out
    (manifest,) = store.manifests()
    assert [cell["label"] for cell in manifest["cells"]] == ["cfg_scale=0", "cfg_scale=3"]


def test_its_name_is_it_and_other_settings_beside_it_ask_for_no_other_table(store, evaluate, capsys):
    evaluate("--config", str(run_of(store).path), *SCALES)
    kept = [json.dumps(manifest) for manifest in store.manifests()]
    assert evaluate("--name", "scales", "--set", "sample.top_k=5", "--only", "cfg_scale=3") == OK
    assert evaluate("scales", "--sampling", "fid", "--set", "sample.seed=0") == USER_ERROR
    assert "sample.seed is given by --sample-seeds" in capsys.readouterr().err
    found = [record["sample"] for record in run_of(store).evaluations().values()]
    assert [(one["cfg_scale"], one["top_k"]) for one in found if one["top_k"]] == [(3, 5)]
    assert [json.dumps(manifest) for manifest in store.manifests()] == kept
    assert evaluate("scales") == OK


def test_a_file_is_its_run(store, evaluate, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("preset: smoke\n" + "".join(f"{n}: {v}\n" for n, v in TINY.items()))
    assert evaluate("--config", str(tmp_path / "run.yaml"), "--set", "sample.cfg_scale=3") == OK
    assert scales_of(store) == [CONFIG.sample.cfg_scale, 3] and not store.manifests()


def test_rows_that_are_not_trained_are_named_and_not_trained(store, evaluate, capsys):
    grid = ["--preset", "smoke", "--grid", "model.pattern=global,intra", "--name", "both", "--set", *FEW]
    assert evaluate(*grid) == FAILURE
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not trained" in line]
    assert "intra" in line and "global" not in line and "`mvar run` with the same words" in line
    assert len(store.runs()) == 1 and len(store.manifests()) == 1
    assert evaluate(*grid, "--only", "pattern=intra") == USER_ERROR


def test_a_sweep_by_its_name_is_its_trained_runs(store, evaluate, capsys):
    assert evaluate("mixers", "--preset", "smoke", "--set", *FEW) == FAILURE  # one of four is trained
    out, err = capsys.readouterr()
    assert "VAR" in out and err.count("digits-") == 3 and not store.manifests()


def test_a_run_by_its_id_is_drawn_at_every_strength_and_its_table_kept(store, evaluate, capsys):
    before = run_of(store).weights.stat().st_mtime_ns
    asked = [CONFIG.run_id, "--cfg-scale", "0,3", "--set", "sample.top_k=5"]
    assert evaluate(*asked) == OK and "cfg_scale=3" in capsys.readouterr().out
    assert scales_of(store) == [0, CONFIG.sample.cfg_scale, 3]
    assert run_of(store).weights.stat().st_mtime_ns == before and len(store.runs()) == 1
    (manifest,) = store.manifests()
    assert manifest["sweep"].startswith("guidance-") and manifest["overrides"]["sample.top_k"] == "5"
    kept = read_manifest(store)
    assert evaluate(*asked, "--name", "mine", "--grid", "sample.top_p=0.5,0.9") == OK
    assert {found["sweep"] for found in store.manifests()} == {manifest["sweep"], "mine"}
    assert evaluate(CONFIG.run_id, "--cfg-scale", "3,0.5", "--set", "sample.top_k=5") == OK  # a value more, one table
    assert len(store.manifests()) == 2 and [c["label"] for c in read_manifest(store)["cells"]] == [
        *(cell["label"] for cell in kept["cells"]),
        "cfg_scale=0.5",
    ]


def read_manifest(store):
    return next(found for found in store.manifests() if found["sweep"].startswith("guidance-"))


@pytest.mark.slow
def test_runs_of_several_seeds_and_patterns_are_rows_with_the_seeds_that_there_are(store, evaluate, capsys):
    """Two seeds of one pattern, one of another: nothing that was not named is asked for, and nothing is trained."""
    intra = [override(CONFIG, {"model.pattern": "intra", "seed": seed}) for seed in (0, 1)]
    for config in intra:
        execute(config, store)
    runs = [CONFIG, *intra]
    assert evaluate(*(c.run_id for c in runs), "--cfg-scale", "0,1.5", "--sample-seeds", "0,4") == OK
    assert len(store.runs()) == 3
    (manifest,) = store.manifests()
    cells = {cell["label"]: (cell["run_ids"], cell.get("seeds", manifest["seeds"])) for cell in manifest["cells"]}
    assert cells == {
        f"pattern={pattern}, cfg_scale={cfg}": ([c.run_id for c in runs if c.model.pattern == pattern], seeds)
        for pattern, seeds in ((CONFIG.model.pattern, [0]), ("intra", [0, 1]))
        for cfg in ("0", "1.5")
    }
    assert manifest["sample_seeds"] == [0, 4]
    assert all(len(store.run_of(config).evaluations()) == 4 for config in runs)
    assert main(["report", "--results", str(store.root)]) == OK
    page = (store.root / "report" / "report.md").read_text()
    assert "FID of intra is" in page and "on sampling seed 0, whose numbers are in no cell here" in page
    assert list((store.root / "report" / "figures").glob("guidance-*.png"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"run, checkpoint: neither is given; allowed: one of RUN, --checkpoint FILE, --config FILE"),
        (["RUN", "--name", "x"], r"RUN and --name are given"),
        (["RUN", "--checkpoint", "x.pth"], r"RUN and --checkpoint are given"),
        (["--checkpoint", "x.pth", "--config", "x.yaml"], r"--checkpoint and --config are given"),
        (["RUN", "--preset", "smoke"], r"preset: a run has its own; allowed: --preset with --config"),
        (["RUN", "--seeds", "3"], r"seeds: a run has its own"),
        (["--checkpoint", "x.pth", "--only", "x"], r"only: a checkpoint has its own"),
        (["--config", "x.yaml", "--weights", "ema"], r"weights: a run has its own"),
        (["--name", "x"], r"name: 'x' is unknown"),
        (["RUN", "--set", "train.steps=9"], r"set: train.steps would be another run"),
        (["RUN", "--cfg-scale", "0,1", "--set", "train.steps=9"], r"set: train.steps would be another run"),
        (["RUN", "--cfg-scale", "0,1", "--seeds", "3"], r"seeds: a run has its own"),
        (["RUN", "--cfg-scale", "0,-1"], r"cfg_scale: -1.*allowed|cfg_scale: -1"),
        (["RUN", "--cfg-scale", "0,0.0"], r"'0' and '0.0' are one value"),
        (["RUN", "--cfg-scale", ""], r"sample.cfg_scale: '' has an empty value"),
        (["RUN", "--cfg-scale", "0,x"], r"cfg_scale: 'x'"),
        (["RUN", "--grid", "train.steps=4,9"], r"grid: train.steps=4,9 would be other runs; allowed: fields of sample"),
        (["RUN", "nope", "--cfg-scale", "0"], r"run: 'nope' is unknown"),
        (["RUN", "--cfg-scale", "0", "--config", "x.yaml"], r"RUN and --config are given"),
        (["mixers", "--cfg-scale", "0"], r"cfg-scale: of runs by their ids; allowed: RUN"),
        (["--cfg-scale", "0"], r"cfg-scale: of runs by their ids"),
    ],
)
def test_what_does_not_go_together_is_one_line(store, evaluate, capsys, words, said):
    assert evaluate(*[CONFIG.run_id if word == "RUN" else word for word in words]) == USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert pytest.raises(UserError, match=said).matches(UserError(line)), line
    assert not store.manifests()
