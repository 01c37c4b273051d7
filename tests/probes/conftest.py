"""A run that is not trained, with all that probes look at: an extractor too."""

import pytest
import torch
from tiny_runs import CONFIG
from untrained_runs import finish_tokenizer, save_untrained

from mvar.checkpoints.weights import save_weights
from mvar.config import override
from mvar.runs.store import Store
from mvar.runs.wiring import Stages


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """Store and run of a model with `global` and `intra+mamba` in it."""
    changes = {"model.pattern": "global intra+mamba", "data.heldout_fraction": 0.05, "evaluation.num_images": 30}
    config = override(CONFIG, changes)
    store = Store(tmp_path_factory.mktemp("probes") / "results")
    run, model = save_untrained(store, config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    save_weights(run.weights, model, {"class_names": [str(n) for n in range(10)]})
    finish_tokenizer(store, config)
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
