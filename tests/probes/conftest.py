"""A run that is not trained, with all that probes look at: an extractor too."""

import pytest
from tiny_runs import CONFIG
from untrained_runs import save_stirred

from mvar.config import override
from mvar.runs.store import Store
from mvar.runs.wiring import Stages


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """Store and run of a model with `global` and `intra+mamba` in it."""
    changes = {"model.pattern": "global intra+mamba", "data.heldout_fraction": 0.05, "evaluation.num_images": 30}
    config = override(CONFIG, changes)
    store = Store(tmp_path_factory.mktemp("probes") / "results")
    run, _ = save_stirred(store, config)
    stages = Stages(config, store)
    stages.tokens.run()
    stages.extractor.run()
    return store, run


@pytest.fixture
def fresh(untrained):
    """The same, nothing measured yet."""
    for path in untrained[1].path.glob("probes/*.json"):
        path.unlink()
    return untrained
