"""Several processes make the features of one evaluation: the numbers are those of one process, stopped or not."""

import json
import multiprocessing

import pytest
from tiny_runs import CONFIG

from mvar.config import override
from mvar.evaluation.metrics.contract import every_metric
from mvar.runs import pipeline
from mvar.runs.stages.contract import Watch
from mvar.runs.states import Stopped
from mvar.runs.store import Store
from mvar.runs.wiring import Stages
from mvar.training import distributed

ASKED = override(CONFIG, {"evaluation.also": "sfid,density_coverage,fd_infinity", "runtime.device": "cpu"})
OF_FEATURES = {
    key for kind in every_metric().values() if {"features", "spatial"} & set(kind.needs) for key in kind.keys
}


def take_part(root, rank, world, stops):
    """One of the processes; the last one is asked to stop where `stops`."""
    with distributed.joined(rank, world, rank, world, root / "meeting.json"):
        if rank:
            pipeline.follow(Store(root), lambda: stops)
            return
        try:
            Stages(ASKED, Store(root), Watch()).evaluate.run()
        except Stopped:
            assert stops


def measure(root, world, stops=False):
    context = multiprocessing.get_context("fork")
    group = [context.Process(target=take_part, args=(root, r, world, stops), daemon=True) for r in range(world)]
    for process in group:
        process.start()
    for process in group:
        process.join(100)
    assert [process.exitcode for process in group] == [0] * world


@pytest.mark.parametrize("stops", [False, True])
def test_the_number_of_processes_does_not_matter(store, stops):
    """Eight batches, the last one smaller; what one of two processes stops one process finishes."""
    run = store.run(CONFIG.run_id)
    Stages(ASKED, store, Watch()).evaluate.run()
    alone = run.evaluations()[CONFIG.evaluation_id]
    (run.path / "eval.json").unlink()
    measure(store.root, 2, stops)
    if stops:
        assert "eval/fid" not in run.evaluations().get(CONFIG.evaluation_id, {"metrics": {}})["metrics"]
        Stages(ASKED, store, Watch()).evaluate.run()
    found = run.evaluations()[CONFIG.evaluation_id]
    assert found["metrics"] == pytest.approx(alone["metrics"], rel=1e-9)
    assert json.dumps(found["metrics"]) == json.dumps(alone["metrics"])  # on one machine the very same
    assert set(found["metrics"]) > OF_FEATURES
