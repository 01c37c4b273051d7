"""Several processes draw the images of one evaluation: the bytes are those of one process, stopped or not."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from joined_processes import together

from mvar.config import RunConfig, override
from mvar.presets import PRESETS
from mvar.runs.stages.contract import Watch, nobody
from mvar.runs.states import Stopped
from mvar.runs.store import Store
from mvar.runs.wiring import Stages
from mvar.training import distributed

PLAIN = override(
    PRESETS["smoke"],
    {
        "model.depth": 1,
        "model.width": 16,
        "train.steps": 3,
        "tokenizer.train.steps": 3,
        "evaluation.num_images": 33,
        "evaluation.classifier_steps": 5,
        "runtime.sample_batch": 7,  # five batches, the last of five images
        "runtime.device": "cpu",
        "runtime.threads": 1,
    },
)
BEST = override(PLAIN, {"sample.candidates": 2})


def draw(config: RunConfig, store: Store, progress=None) -> None:
    Stages(config, store, Watch(progress or nobody)).sample.run()


def draw_together(config: RunConfig, root: Path, world: int, rounds: int | None = None) -> None:
    together(root, world, partial(draw, config), rounds)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Trained weights, and the images that one process draws with them."""
    root = tmp_path_factory.mktemp("trained")
    stages = Stages(BEST, Store(root))
    stages.run.path.mkdir(parents=True)
    stages.run.write_config(PLAIN)
    for stage in (stages.tokenizer, stages.tokens, stages.train, stages.reject):
        stage.run()
    for config in (PLAIN, BEST):
        draw(config, Store(root))
    return root


@pytest.fixture
def undrawn(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(Store(tmp_path).run(PLAIN.run_id).path / "samples")
    return tmp_path


def drawn(root: Path, config: RunConfig) -> dict[str, bytes]:
    folder = Store(root).run(config.run_id).samples(config.evaluation_id)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timing.json"}


def timing(root: Path, config: RunConfig) -> dict:
    return json.loads((Store(root).run(config.run_id).samples(config.evaluation_id) / "timing.json").read_text())


@pytest.mark.parametrize(("config", "world"), [(BEST, 2), (PLAIN, 3)])
def test_the_number_of_processes_does_not_matter(trained, undrawn, config, world):
    """The last round has fewer batches than processes, and the last batch fewer images than the others."""
    draw_together(config, undrawn, world)
    assert drawn(undrawn, config) == drawn(trained, config)
    assert (timing(trained, config)["processes"], timing(undrawn, config)["processes"]) == (1, world)
    assert timing(undrawn, config)["sample_s"] > 0


def test_stopped_on_two_processes_and_finished_by_one(trained, undrawn):
    """One of two is asked; both leave after the same round, and one process draws what is left and no more."""
    draw_together(PLAIN, undrawn, 2, rounds=1)
    assert set(drawn(undrawn, PLAIN)) == {"partial.bin", "partial.json"}
    record = json.loads(drawn(undrawn, PLAIN)["partial.json"])
    assert record["done"] == 14 and record["sample_s"] > 0
    calls: list[tuple[str, int, int]] = []
    draw(PLAIN, Store(undrawn), lambda *call: calls.append(call))
    assert calls == [("sample", done, 33) for done in (21, 28, 33)]
    assert drawn(undrawn, PLAIN) == drawn(trained, PLAIN)


def test_stopped_by_one_process_and_finished_on_two(trained, undrawn):
    def stop(stage: str, done: int, total: int) -> None:
        raise Stopped("after the first batch")

    with pytest.raises(Stopped):
        draw(PLAIN, Store(undrawn), stop)
    draw_together(PLAIN, undrawn, 2)
    assert drawn(undrawn, PLAIN) == drawn(trained, PLAIN)


def test_one_process_is_a_group_of_one():
    with distributed.together(PLAIN.runtime) as group:
        assert (group.rank, group.world) == (0, 1)
        assert group.any(True) and not group.any(False) and group.sum(1.5) == 1.5
        (part,) = group.gather(torch.arange(3))
        assert part.tolist() == [0, 1, 2]
    assert not torch.distributed.is_initialized()
