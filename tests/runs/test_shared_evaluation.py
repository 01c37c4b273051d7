"""Several processes make the features of one evaluation: the numbers are those of one process, stopped or not."""

import json

import pytest
from joined_processes import together
from tiny_runs import CONFIG

from mvar import layout
from mvar.config import override
from mvar.data.rounds import ALONE
from mvar.data.splits import load_images
from mvar.evaluation import floors
from mvar.evaluation.extractors.contract import kind_of
from mvar.evaluation.metrics.contract import every_metric
from mvar.evaluation.reference import write_reference
from mvar.runs import pipeline
from mvar.runs.stages.contract import Watch
from mvar.runs.wiring import Stages

ASKED = override(CONFIG, {"evaluation.also": "sfid,density_coverage,fd_infinity", "runtime.device": "cpu"})
OF_FEATURES = {
    key for kind in every_metric().values() if {"features", "spatial"} & set(kind.needs) for key in kind.keys
}


def measure(config, root, world, stops=False):
    """The last one is asked to stop at once where `stops`."""
    together(root, world, lambda store: Stages(config, store, Watch()).evaluate.run(), 0 if stops else None)


def check_alike(config, store, stops=False):
    """What one process measures, two measure, over gloo: to 1e-9, and on one machine the very same."""
    run = store.run(config.run_id)
    Stages(config, store, Watch()).evaluate.run()
    alone = run.evaluations()[config.evaluation_id]
    (run.path / "eval.json").unlink()
    measure(config, store.root, 2, stops)
    if stops:
        assert "eval/fid" not in run.evaluations().get(config.evaluation_id, {"metrics": {}})["metrics"]
        Stages(config, store, Watch()).evaluate.run()
    found = run.evaluations()[config.evaluation_id]
    assert found["metrics"] == pytest.approx(alone["metrics"], rel=1e-9)
    assert json.dumps(found["metrics"]) == json.dumps(alone["metrics"])
    assert set(found["metrics"]) > OF_FEATURES
    return found


@pytest.mark.parametrize("stops", [False, True])
def test_the_number_of_processes_does_not_matter(store, stops):
    """Eight batches, the last one smaller; what one of two processes stops one process finishes."""
    check_alike(ASKED, store, stops)


@pytest.mark.slow
def test_nor_does_it_against_a_file_of_reference(store, tmp_path):
    path = tmp_path / "reference.npz"
    extractor = kind_of(CONFIG).load(store.stage("extractor", CONFIG.extractor_id).path)
    write_reference(path, load_images(CONFIG.data, "heldout"), extractor, keep=100)
    config = override(ASKED, {"evaluation.reference": str(path)})
    pipeline.execute(config, store)  # draws its images
    assert check_alike(config, store)["reference"]["num_images"] == 100


@pytest.mark.slow
def test_nor_does_it_for_what_is_reconstructed(store, monkeypatch):
    """The tokenizer's quality and the floors: batches of all processes, the last one smaller."""
    monkeypatch.setattr("mvar.evaluation.floors.BATCH_SIZE", 7)
    config = override(CONFIG, {"runtime.device": "cpu"})
    stages = Stages(config, store, Watch())
    paths = [stages.tokenizer.directory.path / layout.QUALITY, stages.floors.directory.path / layout.FLOORS]

    def make(store):
        for path in paths:
            path.unlink()
        made = Stages(config, store, Watch())
        made.tokenizer.restore_quality()
        made.floors.run()
        return [path.read_bytes() for path in paths]

    taken, reconstruct = store.root / "taken", floors.reconstruct

    def noting(*args, group=ALONE, **kwargs):
        (taken / f"{group.rank} of {group.world} {args[1].what}").touch()
        return reconstruct(*args, group=group, **kwargs)

    alone = make(store)
    taken.mkdir()
    for module in ("tokenizer", "floors"):
        monkeypatch.setattr(f"mvar.runs.stages.{module}.reconstruct", noting)
    together(store.root, 2, make)
    assert [path.read_bytes() for path in paths] == alone
    assert {path.name for path in taken.iterdir()} >= {"1 of 2 held-out images", "1 of 2 training images"}
